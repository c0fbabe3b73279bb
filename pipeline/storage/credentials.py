"""URLs that hold credentials are refused: ledgers, footers and indexes keep URLs."""

from __future__ import annotations

import re

from chiasm.pipeline.errors import UsageError

# Query parameters that hold secrets: those of AWS's, Google's, Azure's and CloudFront's signed
# URLs, and common names of tokens.
SECRET_PARAMETERS = re.compile(
    r"(x-(amz|goog)-(signature|credential|security-token)|signature|sig|policy|key-pair-id"
    r"|awsaccesskeyid|googleaccessid|(access[_-]?|auth[_-]?|id[_-]?)?token|jwt|api[_-]?key|auth"
    r"|(client[_-]?)?secret|pwd|passwd|password)",
    re.IGNORECASE,
)


def credentials_error(url: str, do: str) -> UsageError:
    expected = "a URL that may be written into ledgers"
    return UsageError(url, expected=expected, found="credentials in it", do=do)

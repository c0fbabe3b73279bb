"""What boto and aiohttp raise, as StoreErrors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    FlexibleChecksumError,
    HTTPClientError,
    NoCredentialsError,
)
from botocore.exceptions import ConnectionError as NotConnected
from botocore.parsers import ResponseParserError

from chiasm.pipeline.storage.store_errors import (
    AlreadyExists,
    Conflict,
    NotFound,
    RangeNotSatisfiable,
    Refused,
    StoreError,
    TransientError,
    Unsupported,
    one_line,
    one_line_message,
    raise_if_untrusted,
)

# Error codes of transient failures that come with a status below 500.
_TRANSIENT_CODES = {
    "BadDigest",
    "IncompleteBody",
    "InternalError",
    "RequestTimeout",
    "RequestTimeTooSkewed",
    "ServiceUnavailable",
    "SlowDown",
    "XAmzContentSHA256Mismatch",
}

_CONNECTION_ERRORS = (
    HTTPClientError,
    NotConnected,
    ResponseParserError,
    FlexibleChecksumError,
    aiohttp.ClientError,
)


@contextmanager
def translating_errors() -> Iterator[None]:
    """Raise StoreErrors in place of what boto and aiohttp raise."""
    try:
        yield
    except ClientError as error:
        raise _store_error(error) from error
    except (OSError, *_CONNECTION_ERRORS) as error:
        raise_if_untrusted(error, "AWS_CA_BUNDLE")
        raise TransientError(one_line_message(error)) from error
    except NoCredentialsError as error:
        do = "set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (docs/operations.md)"
        raise Refused("no credentials", do) from error
    except (BotoCoreError, ValueError) as error:  # an invalid bucket name, an unknown profile
        raise Refused(one_line_message(error)) from error


def _store_error(error: ClientError) -> StoreError:
    response: Any = error.response
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    code = response.get("Error", {}).get("Code", "")
    if status == 409:
        return Conflict(one_line(f"{status} {code}"))
    if (status >= 500 and status != 501) or status in (408, 429) or code in _TRANSIENT_CODES:
        return TransientError(one_line(f"{status} {code}"))
    if code == "NoSuchBucket":
        return Refused("no such bucket", "make it, or check its name")
    if status == 404:
        return NotFound(code)
    if status == 416:
        return RangeNotSatisfiable(code)
    if status == 412:
        return AlreadyExists(code)
    message = f"{status} {one_line_message(error)}"
    return Unsupported(message) if status == 501 else Refused(message)

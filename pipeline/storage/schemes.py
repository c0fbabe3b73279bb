"""One table: which backend answers for which URL scheme."""

from __future__ import annotations

import re

from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.storage.backend import Backend
from chiasm.pipeline.storage.local import LocalFiles
from chiasm.pipeline.storage.remote import RemoteFiles, WebFiles

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)://")


BACKENDS: dict[str, Backend] = {
    "file": LocalFiles(),
    "s3": RemoteFiles("s3"),
    "gs": RemoteFiles("gs"),
    "hf": RemoteFiles("hf"),
    "http": WebFiles("http"),
    "https": WebFiles("https"),
}


def backend_of(path_or_url: str) -> Backend:
    found = _SCHEME.match(path_or_url)
    scheme = found[1].lower() if found else "file"
    if scheme not in BACKENDS:
        valid = ", ".join(f"{name}://" for name in BACKENDS)
        # The rest may hold a password, at a place that only those who know the scheme can tell.
        raise UsageError(f"{scheme}://***", expected=f"a path or one of {valid}", found="another")
    return BACKENDS[scheme]

"""One table: URL scheme -> backend. A new scheme is one entry.

Libraries of a store are imported when a URL first needs it, so that local files cost nothing of
them.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.storage import retry
from chiasm.pipeline.storage.backend import Backend
from chiasm.pipeline.storage.local import LocalFiles
from chiasm.pipeline.storage.object_store import ReadableStore, Store
from chiasm.pipeline.storage.remote import ObjectFiles
from chiasm.pipeline.storage.web_files import WebFiles

S = TypeVar("S", bound=ReadableStore)

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)://")


class PerProcess(Generic[S]):
    """Calls `make` once in a process and returns that store from then on: a connection does not
    survive a fork."""

    def __init__(self, make: Callable[[], S]) -> None:
        self._make = make
        self._stores: dict[int, S] = {}  # pid -> store
        self._lock = threading.Lock()

    def __call__(self) -> S:
        with self._lock:
            if os.getpid() not in self._stores:
                self._stores[os.getpid()] = self._make()
            return self._stores[os.getpid()]

    def replace(self, store: S | None) -> None:
        """Use `store` in this process; None: make one at the next call."""
        with self._lock:
            self._stores.pop(os.getpid(), None)
            if store is not None:
                self._stores[os.getpid()] = store


def _s3() -> Store:
    with _requiring_package("s3"):
        from chiasm.pipeline.storage.s3 import S3Store
    return S3Store(retry.RETRIES)


def _web() -> ReadableStore:
    with _requiring_package("http"):
        from chiasm.pipeline.storage.http import WebStore
    return WebStore(retry.RETRIES)


def _gs() -> Store:
    from chiasm.pipeline.storage.fsspec_store import FsspecStore

    with _requiring_package("gs", do="pip install 'chiasm[gcs]'"):
        from gcsfs import GCSFileSystem  # pyrefly: ignore  # an extra
    return FsspecStore(GCSFileSystem(use_listings_cache=False, skip_instance_cache=True))


def _hf() -> Store:
    from chiasm.pipeline.storage.fsspec_store import FsspecStore

    with _requiring_package("hf"):
        from huggingface_hub import HfFileSystem
    return FsspecStore(HfFileSystem(use_listings_cache=False, skip_instance_cache=True))


@contextmanager
def _requiring_package(scheme: str, do: str = "") -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise UsageError(
            f"package {error.name}", expected=f"it for {scheme}:// URLs", found="none", do=do
        ) from error


S3_STORE, GS_STORE, HF_STORE = PerProcess(_s3), PerProcess(_gs), PerProcess(_hf)
WEB_STORE = PerProcess(_web)

BACKENDS: dict[str, Backend] = {
    "file": LocalFiles(),
    "s3": ObjectFiles("s3", S3_STORE),
    "gs": ObjectFiles("gs", GS_STORE),
    "hf": ObjectFiles("hf", HF_STORE),
    "http": WebFiles("http", WEB_STORE),
    "https": WebFiles("https", WEB_STORE),
}


def backend_of(path_or_url: str) -> Backend:
    """The backend of a path or URL; UsageError for a scheme that is not in the table."""
    found = _SCHEME.match(path_or_url)
    scheme = found[1].lower() if found else "file"
    if scheme not in BACKENDS:
        valid = ", ".join(f"{name}://" for name in BACKENDS)
        # The rest may hold a password, and only the scheme's own rules say where.
        raise UsageError(f"{scheme}://***", expected=f"a path or one of {valid}", found="another")
    return BACKENDS[scheme]

"""The protocols of stores, readable and writable, and the records that their requests return.

A store makes one attempt for each call and raises a `StoreError` where it fails; callers retry
(`retry.py`). S3 (`s3.py`) and HTTP (`http.py`) are asked for ranges and ETags directly, other
stores through what every fsspec filesystem offers (`fsspec_store.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Protocol

from chiasm.pipeline.storage.backend import Stat
from chiasm.pipeline.storage.store_errors import StoreError


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Bytes of an object from `start` on. total: the object's size in bytes. version: None where
    the store reports none with a range."""

    start: int
    data: bytes
    total: int
    version: str | None


@dataclass(frozen=True, slots=True)
class Listing:
    """What is under a prefix: keys of objects with their stats, and the common prefixes that count
    as folders."""

    stats: dict[str, Stat]
    folders: list[str]

    @property
    def files(self) -> list[str]:
        """The keys, sorted."""
        return sorted(self.stats)


class OpenResponse(Protocol):
    """A response whose body is still arriving: a whole object from its first byte on."""

    size: int
    version: str

    def read(self, size: int) -> bytes: ...
    def close(self) -> None: ...


class RangesUnsupported(StoreError):
    """The server sends whole files only. size: in bytes, -1 where it is not reported. request: asks
    for the whole file."""

    def __init__(self, size: int, version: str, request: Callable[[], OpenResponse]) -> None:
        super().__init__("the server sends whole files only")
        self.size, self.version, self.request = size, version, request


class ReadableStore(Protocol):
    """A store that can be read. A `path` is a URL without its scheme (HTTP: the whole URL).

    `get` reads a range; a negative `start` counts from the end of the object."""

    def head(self, path: str) -> Stat: ...
    def get(self, path: str, start: int, size: int) -> ByteRange: ...


class Store(ReadableStore, Protocol):
    """A store that can also be listed and written.

    create_token: where it is given, an object is put only if its name is free, or was taken by an
    earlier attempt with the same token; else AlreadyExists. `upload`, which sends large objects in
    parts, and `abort_uploads` retry by themselves, request by request."""

    def list(self, folder: str, *, deep: bool = False) -> Listing: ...
    def is_folder(self, path: str) -> bool: ...
    def put(self, path: str, data: bytes, *, create_token: str = "") -> None: ...
    def upload(self, path: str, file: IO[bytes], size: int, *, create_token: str = "") -> None: ...
    def remove(self, path: str) -> None: ...
    def abort_uploads(self, folder: str, is_dead: Callable[[str], bool]) -> Sequence[str]: ...

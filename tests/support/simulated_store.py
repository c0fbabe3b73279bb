"""An object store in memory, for tests that run the product's own code against every fault of one.

`SimulatedStore` is a `Store` (`pipeline/storage/object_store.py`): what a backend asks of S3, it
asks of this. Before and after each request `step` is called with its kind and path: it may let
others go on, or raise, so that a request, or its answer alone, is lost. `log` holds the changes in
order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO

import pytest

from chiasm.pipeline.storage import schemes
from chiasm.pipeline.storage.backend import Stat
from chiasm.pipeline.storage.object_store import ByteRange, Listing
from chiasm.pipeline.storage.remote import ObjectFiles
from chiasm.pipeline.storage.store_errors import AlreadyExists, NotFound, RangeNotSatisfiable

BUCKET = "s3://bucket"


class Object:
    """An object: its content, and the mark of the writer that wanted a new name for it."""

    def __init__(self, data: bytes, create_token: str = "", modified: float = 0.0) -> None:
        self.data, self.create_token = data, create_token
        version = hashlib.blake2b(data, digest_size=8).hexdigest()
        self.stat = Stat(len(data), version, modified)


@dataclass
class SimulatedStore:
    """objects: by path, `bucket/key`. log: each change as (path, object or None). now: the store's
    clock, in seconds."""

    step: Callable[[str, str, str], None] = lambda when, kind, path: None
    objects: dict[str, Object] = field(default_factory=dict)
    log: list[tuple[str, Object | None]] = field(default_factory=list)
    now: float = 0.0

    @contextmanager
    def _request(self, kind: str, path: str) -> Iterator[None]:
        self.step("before", kind, path)
        yield
        self.step("after", kind, path)

    def head(self, path: str) -> Stat:
        with self._request("head", path):
            return self._object(path).stat

    def get(self, path: str, start: int, size: int) -> ByteRange:
        with self._request("get", path):
            found = self._object(path)
            total = len(found.data)
            first = max(0, total + start) if start < 0 else start
            if first >= total:
                raise RangeNotSatisfiable(total)
            return ByteRange(first, found.data[first : first + size], total, found.stat.version)

    def list(self, folder: str, *, deep: bool = False) -> Listing:
        with self._request("list", folder):
            names = [path for path in self.visible_paths() if path.startswith(folder)]
            files = {
                path: self.objects[path].stat
                for path in names
                if deep or "/" not in path[len(folder) :]
            }
            folders = {
                folder + path[len(folder) :].partition("/")[0]
                for path in names
                if "/" in path[len(folder) :]
            }
            return Listing(files, sorted(folders))

    def visible_paths(self) -> Sequence[str]:
        """The paths that a listing shows, sorted."""
        return sorted(self.objects)

    def is_folder(self, path: str) -> bool:
        return bool(self.list(path.rstrip("/") + "/", deep=True).files)

    def put(self, path: str, data: bytes, *, create_token: str = "") -> None:
        with self._request("put", path):
            existing = self.objects.get(path)
            if create_token and existing is not None:
                if existing.create_token != create_token:
                    raise AlreadyExists(path)
                return
            self._change(path, Object(bytes(data), create_token, self.now))

    def upload(self, path: str, file: IO[bytes], size: int, *, create_token: str = "") -> None:
        file.seek(0)
        self.put(path, file.read(), create_token=create_token)

    def remove(self, path: str) -> None:
        with self._request("remove", path):
            if path in self.objects:
                self._change(path, None)

    def abort_uploads(self, folder: str, is_dead: Callable[[str], bool]) -> Sequence[str]:
        return ()

    def _object(self, path: str) -> Object:
        if path not in self.objects:
            raise NotFound(path)
        return self.objects[path]

    def _change(self, path: str, new: Object | None) -> None:
        self.log.append((path, new))
        if new is None:
            del self.objects[path]
        else:
            self.objects[path] = new


class SerialFiles(ObjectFiles):
    """The backend of a simulated store: one request after the other, in the caller's thread."""

    concurrency = 1


@contextmanager
def using_store(store: SimulatedStore) -> Iterator[None]:
    """`s3://` URLs of this process lead to `store`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(schemes.BACKENDS, "s3", SerialFiles("s3", lambda: store))
        yield

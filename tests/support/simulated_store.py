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
COLLECTION = "bucket/c/"  # of a simulation


class Object:
    """An object: its content, and the mark of the writer that wanted a new name for it."""

    def __init__(self, data: bytes, create_token: str = "", modified: float = 0.0) -> None:
        self.data, self.create_token = data, create_token
        version = hashlib.blake2b(data, digest_size=8).hexdigest()
        self.stat = Stat(len(data), version, modified)


def area(path: str) -> str:
    """The part of a collection that a path is in, such as `runs` or `index/generations`."""
    first, _, rest = path.removeprefix(COLLECTION).partition("/")
    return f"{first}/{rest.partition('/')[0]}" if first == "index" else first


@dataclass
class SimulatedStore:
    """objects: by path, `bucket/key`. log: each change as (path, object or None). now: the store's
    clock, in seconds. lag: for so long a listing of `lagging` areas may show what was there before;
    all else is seen at once."""

    step: Callable[[str, str, str], None] = lambda when, kind, path: None
    objects: dict[str, Object] = field(default_factory=dict)
    log: list[tuple[str, Object | None]] = field(default_factory=list)
    now: float = 0.0
    lag: float = 0.0
    lagging: Sequence[str] = ()
    _replaced: list[tuple[float, str, Object | None]] = field(default_factory=list)

    def head(self, path: str) -> Stat:
        self.step("before", "head", path)
        found = self._object(path).stat
        self.step("after", "head", path)
        return found

    def get(self, path: str, start: int, size: int) -> ByteRange:
        self.step("before", "get", path)
        found = self._object(path)
        total = len(found.data)
        first = max(0, total + start) if start < 0 else start
        if first >= total:
            raise RangeNotSatisfiable(total)
        self.step("after", "get", path)
        return ByteRange(first, found.data[first : first + size], total, found.stat.version)

    def list(self, folder: str, *, deep: bool = False) -> Listing:
        self.step("before", "list", folder)
        objects, start = self._visible(folder), len(folder)
        files: dict[str, Stat] = {}
        folders: set[str] = set()
        for path in sorted(path for path in objects if path.startswith(folder)):
            slash = path.find("/", start)
            if slash >= 0:
                folders.add(path[:slash])
            if deep or slash < 0:
                files[path] = objects[path].stat
        self.step("after", "list", folder)
        return Listing(files, sorted(folders))

    def _visible(self, folder: str) -> dict[str, Object]:
        """The objects that a listing shows."""
        if not self.lag or area(folder) not in self.lagging:
            return self.objects
        objects = dict(self.objects)
        for time, path, old in reversed(self._replaced):
            if time <= self.now - self.lag:
                break
            if old is None:
                objects.pop(path, None)
            else:
                objects[path] = old
        return objects

    def is_folder(self, path: str) -> bool:
        return bool(self.list(path.rstrip("/") + "/", deep=True).files)

    def put(self, path: str, data: bytes, *, create_token: str = "") -> None:
        self.step("before", "put", path)
        existing = self.objects.get(path)
        if create_token and existing is not None:
            if existing.create_token != create_token:
                raise AlreadyExists(path)
        else:
            self._change(path, Object(bytes(data), create_token, self.now))
        self.step("after", "put", path)

    def upload(self, path: str, file: IO[bytes], size: int, *, create_token: str = "") -> None:
        file.seek(0)
        self.put(path, file.read(), create_token=create_token)

    def remove(self, path: str) -> None:
        self.step("before", "remove", path)
        if path in self.objects:
            self._change(path, None)
        self.step("after", "remove", path)

    def abort_uploads(self, folder: str, is_dead: Callable[[str], bool]) -> Sequence[str]:
        return ()

    def _object(self, path: str) -> Object:
        if path not in self.objects:
            raise NotFound(path)
        return self.objects[path]

    def _change(self, path: str, new: Object | None) -> None:
        self.log.append((path, new))
        self._replaced.append((self.now, path, self.objects.get(path)))
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

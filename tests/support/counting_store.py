"""An object store in memory that counts its requests, and may take a while for each."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import IO

from chiasm.pipeline.storage import Folder, Stat
from chiasm.pipeline.storage.object_store import ByteRange, Listing
from chiasm.pipeline.storage.remote import ObjectFiles
from chiasm.pipeline.storage.store_errors import AlreadyExists, NotFound, RangeNotSatisfiable

PAGE = 1000  # keys of one answer to a listing, as S3 has it


class CountingStore:
    """A `Store`. seconds: what each request takes, whatever else is asked for meanwhile. forgets:
    objects with one of these in their names are not kept.

    requests: by kind. rounds: how many requests waited for one before them, where a thread pool
    makes `ObjectFiles.concurrency` at a time."""

    def __init__(self, seconds: float = 0.0, forgets: Sequence[str] = ()) -> None:
        self.forgets = forgets
        self.objects: dict[str, bytes] = {}
        self.seconds = seconds
        self.requests: Counter[str] = Counter()
        self._alone = self._pooled = 0
        self._lock = threading.Lock()

    @property
    def total(self) -> int:
        return self.requests.total()

    @property
    def rounds(self) -> int:
        return self._alone + -(-self._pooled // ObjectFiles.concurrency)

    def reset(self) -> None:
        self.requests.clear()
        self._alone = self._pooled = 0

    def folder(self, name: str = "c") -> Folder:
        """A collection's folder in this store."""
        return Folder(f"s3://bucket/{name}", ObjectFiles("s3", lambda: self))

    def head(self, path: str) -> Stat:
        self._count("head")
        return self._stat(path)

    def get(self, path: str, start: int, size: int) -> ByteRange:
        self._count("get")
        stat, data = self._stat(path), self.objects[path]
        first = max(0, len(data) + start) if start < 0 else start
        if first >= len(data):
            raise RangeNotSatisfiable(len(data))
        return ByteRange(first, data[first : first + size], len(data), stat.version)

    def list(self, folder: str, *, deep: bool = False) -> Listing:
        with self._lock:
            keys = sorted(key for key in self.objects if key.startswith(folder))
        below = {key: key[len(folder) :] for key in keys}
        files = [key for key, rest in below.items() if deep or "/" not in rest]
        folders = {folder + rest.partition("/")[0] for rest in below.values() if "/" in rest}
        for _ in range(0, max(1, len(files)), PAGE):
            self._count("list")
        return Listing({key: self._stat(key) for key in files}, sorted(folders))

    def is_folder(self, path: str) -> bool:
        self._count("list")
        return any(key.startswith(f"{path.rstrip('/')}/") for key in self.objects)

    def put(self, path: str, data: bytes, *, create_token: str = "") -> None:
        self._count("put")
        with self._lock:
            if create_token and path in self.objects:
                raise AlreadyExists(path)
            self.keep(path, data)

    def keep(self, path: str, data: bytes) -> None:
        """Put an object without a request."""
        if not any(part in path for part in self.forgets):
            self.objects[path] = data

    def upload(self, path: str, file: IO[bytes], size: int, *, create_token: str = "") -> None:
        file.seek(0)
        self.put(path, file.read(), create_token=create_token)

    def remove(self, path: str) -> None:
        self._count("delete")
        with self._lock:
            self.objects.pop(path, None)

    def abort_uploads(self, folder: str, is_dead: Callable[[str], bool]) -> Sequence[str]:
        self._count("uploads")
        return ()

    def _stat(self, path: str) -> Stat:
        try:
            data = self.objects[path]
        except KeyError:
            raise NotFound(path) from None
        return self.stat_of(data)

    @staticmethod
    def stat_of(data: bytes) -> Stat:
        return Stat(len(data), hashlib.md5(data).hexdigest())

    def _count(self, kind: str) -> None:
        with self._lock:
            self.requests[kind] += 1
            if threading.current_thread().name.startswith("chiasm-map"):
                self._pooled += 1
            else:
                self._alone += 1
        if self.seconds:
            time.sleep(self.seconds)

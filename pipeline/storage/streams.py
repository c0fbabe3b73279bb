"""Objects read from front to back, or here and there, by ranges that are tried again.

Front to back (`read_ahead`): the next few blocks are on their way while one is read. The first is
small, so that the head of a tar comes fast. Each block is asked for by range and tried again by
itself, so a broken connection goes on where it broke; a block of another length than asked for is
such a break, never data. Memory: AHEAD + 1 blocks of BLOCK bytes, 32 MiB, and as much again while
they arrive. A server that knows no ranges is read by one answer; where that breaks, another is
begun and what was delivered already is passed over.

All raise the StoreErrors of `chiasm.pipeline.storage.retry`, through `told`, which makes them what
callers know.
"""

from __future__ import annotations

import io
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

from chiasm.pipeline.storage.backend import Stat
from chiasm.pipeline.storage.object_store import ByteRange, NoRanges, OpenResponse, ReadableStore
from chiasm.pipeline.storage.retry import (
    PastEnd,
    RetrySettings,
    TransientError,
    VersionChanged,
    retry,
)

BLOCK = 8 << 20
FIRST = 256 << 10  # then four times as much each, up to BLOCK
AHEAD = 3
TAIL = 128 << 10  # read with the size when a file is opened for reading here and there
BUFFER = 1 << 20
EMPTY = ByteRange(0, b"", 0, "")

Told = Callable[[], AbstractContextManager[None]]


def read_ahead(
    store: ReadableStore, path: str, retries: RetrySettings, told: Told
) -> io.BufferedReader:
    """The object as a stream; its first bytes are there when this returns."""
    with told():
        try:
            raw: io.RawIOBase = Ranges(store, path, retries, told)
        except NoRanges as whole:
            raw = OneAnswer(whole, retries, told)
    return io.BufferedReader(raw, BUFFER)


class Ranges(io.RawIOBase):
    """An object by ranges, some blocks ahead."""

    def __init__(self, store: ReadableStore, path: str, retries: RetrySettings, told: Told) -> None:
        self._store, self._path, self._retries, self._told = store, path, retries, told
        self._stop = threading.Event()
        self._reading: ThreadPoolExecutor | None = None
        self._coming: deque[Future[ByteRange]] = deque()
        self._before: Stat | None = None  # of a store that tells no version with a range
        try:
            self._opened = retry(lambda: store.get(path, 0, FIRST), retries)
        except PastEnd:
            self._opened = EMPTY
        if self._opened.version is None:
            self._before = retry(lambda: store.head(path), retries)
        self._block, self._at = self._opened.data, 0
        self._asked, self._next_size = len(self._block), FIRST
        self._ask()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        if self._at == len(self._block) and not self._next():
            return 0
        some = self._block[self._at : self._at + len(buffer)]
        buffer[: len(some)] = some
        self._at += len(some)
        return len(some)

    def close(self) -> None:
        self._stop.set()
        if self._reading is not None:
            self._reading.shutdown(wait=False, cancel_futures=True)
        self._coming.clear()
        super().close()

    def _next(self) -> bool:
        self._block, self._at = b"", 0
        with self._told():
            if self._coming:
                self._block = self._coming.popleft().result().data
            elif self._before is not None:
                self._look_again(self._before)
        self._ask()
        return bool(self._block)

    def _look_again(self, before: Stat) -> None:
        self._before = None
        if retry(lambda: self._store.head(self._path), self._retries) != before:
            raise VersionChanged(before.version)

    def _ask(self) -> None:
        while len(self._coming) < AHEAD and self._asked < self._opened.total:
            if self._reading is None:
                self._reading = ThreadPoolExecutor(AHEAD, "chiasm-fetch")
            self._next_size = min(BLOCK, 4 * self._next_size)
            size = min(self._next_size, self._opened.total - self._asked)
            self._coming.append(self._reading.submit(self._fetch, self._asked, size))
            self._asked += size

    def _fetch(self, start: int, size: int) -> ByteRange:
        opened, retries = self._opened, self._retries
        return fetch(self._store, self._path, start, size, opened, retries, self._stop)


def fetch(
    store: ReadableStore,
    path: str,
    start: int,
    size: int,
    opened: ByteRange,
    retries: RetrySettings,
    stop: threading.Event | None = None,
) -> ByteRange:
    """A range of the object of which `opened` is another; Changed where it is one no more."""

    def once() -> ByteRange:
        try:
            piece = store.get(path, start, size)
        except PastEnd as end:
            raise VersionChanged(opened.version or "") from end
        if (piece.total, piece.version) != (opened.total, opened.version):
            raise VersionChanged(opened.version or "")
        return piece

    return retry(once, retries, stop)


class OneAnswer(io.RawIOBase):
    """An object of a server that knows no ranges. Attempts count while nothing new comes; two
    answers have to call it the same size, since nothing else shows that one lies."""

    def __init__(self, first: NoRanges, retries: RetrySettings, told: Told) -> None:
        self._again, self._retries, self._told = first.again, retries, told
        self._delivered = 0
        self._opened = Stat(first.size, first.version)
        self._live: OpenResponse | None = None
        self._live = retry(lambda: self._begin(), retries)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        with self._told():
            data = retry(lambda: self._read(len(buffer)), self._retries)
        buffer[: len(data)] = data
        self._delivered += len(data)
        return len(data)

    def close(self) -> None:
        if self._live is not None:
            self._live.close()
            self._live = None
        super().close()

    def _begin(self) -> OpenResponse:
        live = self._again()
        before, found = self._opened, Stat(live.size, live.version)
        if found == before:
            return live
        live.close()
        if found.version != before.version:
            raise VersionChanged(before.version)
        if found.version or not self._delivered:
            self._opened = found  # until another answer says otherwise
        raise TransientError(f"told as {before.size} bytes, then as {found.size}")

    def _read(self, size: int) -> bytes:
        try:
            if self._live is None:
                self._live = self._begin()
                self._pass_over(self._live)
            data = self._live.read(size)
            if not data and self._delivered < self._opened.size:
                raise TransientError(f"{self._delivered} bytes of {self._opened.size}")
            return data
        except TransientError:
            if self._live is not None:
                self._live.close()
                self._live = None
            raise

    def _pass_over(self, live: OpenResponse) -> None:
        left = self._delivered
        while left:
            data = live.read(min(left, BUFFER))
            if not data:
                raise TransientError(
                    f"{self._delivered - left} bytes of {self._delivered} read before"
                )
            left -= len(data)


class Seekable(io.RawIOBase):
    """An object for reading here and there, as Parquet wants it. Opening reads size and tail."""

    def __init__(self, store: ReadableStore, path: str, retries: RetrySettings, told: Told) -> None:
        self._store, self._path, self._retries, self._told = store, path, retries, told
        self._at = 0
        with told():
            try:
                self._tail = retry(lambda: store.get(path, -TAIL, TAIL), retries)
            except PastEnd:
                self._tail = EMPTY
        self._size = self._tail.total

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def size(self) -> int:
        return self._size

    def read(self, size: int | None = -1, /) -> bytes:
        """All of `size` bytes, fewer only at the end; several blocks at once where it is many."""
        left = max(0, self._size - self._at)
        wanted = left if size is None or size < 0 else min(size, left)
        ends = range(self._at, self._at + wanted, BLOCK)
        ranges = [(start, min(BLOCK, self._at + wanted - start)) for start in ends]
        self._at += wanted
        with self._told():
            if len(ranges) < 2:
                return b"".join(self._range(*where) for where in ranges)
            with ThreadPoolExecutor(AHEAD, "chiasm-fetch") as reading:
                return b"".join(reading.map(lambda where: self._range(*where), ranges))

    def readinto(self, buffer: Any, /) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _range(self, start: int, size: int) -> bytes:
        inside = start - self._tail.start
        if inside >= 0:
            return self._tail.data[inside : inside + size]
        return fetch(self._store, self._path, start, size, self._tail, self._retries).data

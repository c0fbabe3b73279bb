"""Objects of stores as files: sequential with prefetching, or with random access.

Sequential (`read_ahead`): the next few blocks are requested while one is read. The first block is
small, so that the head of a tar arrives fast. Every block is a range request that is retried by
itself, so reading resumes where a connection broke; a block shorter than requested is a broken
connection, never data. Memory: PREFETCH_BLOCKS + 1 blocks of BLOCK bytes, 32 MiB, and as much again
while they arrive. A server without ranges is read as one response; where that breaks, a new one is
started and the bytes that were read before are skipped.

A `translating_errors` argument is a context that raises callers' errors in place of the StoreErrors
raised here.
"""

from __future__ import annotations

import io
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

from chiasm.pipeline.storage.backend import Stat, Stream
from chiasm.pipeline.storage.object_store import (
    ByteRange,
    OpenResponse,
    RangesUnsupported,
    ReadableStore,
)
from chiasm.pipeline.storage.retry import RetrySettings, retry
from chiasm.pipeline.storage.store_errors import (
    RangeNotSatisfiable,
    TransientError,
    VersionChanged,
)

BLOCK = 8 << 20
FIRST_BLOCK = 256 << 10  # every later one is four times as large, up to BLOCK
PREFETCH_BLOCKS = 3
TAIL = 128 << 10  # read together with the size when a file is opened for random access
BUFFER = 1 << 20
EMPTY = ByteRange(0, b"", 0, "")

ErrorContext = Callable[[], AbstractContextManager[None]]


def read_ahead(
    store: ReadableStore, path: str, retries: RetrySettings, translating_errors: ErrorContext
) -> Stream:
    """The object as a sequential stream; its first block has arrived when this returns."""
    with translating_errors():
        try:
            return RemoteStream(PrefetchingReader(store, path, retries, translating_errors))
        except RangesUnsupported as whole:
            return RemoteStream(ResponseReader(whole, retries, translating_errors))


class RemoteStream(Stream):
    """An object, open for reading."""

    def __init__(self, reader: PrefetchingReader | ResponseReader) -> None:
        super().__init__(reader, BUFFER)
        self._reader = reader

    def stat(self) -> Stat | None:
        return self._reader.stat()


class PrefetchingReader(io.RawIOBase):
    """An object by range requests, PREFETCH_BLOCKS of them ahead of the reader."""

    def __init__(
        self,
        store: ReadableStore,
        path: str,
        retries: RetrySettings,
        translating_errors: ErrorContext,
    ) -> None:
        self._store, self._path, self._retries = store, path, retries
        self._translating_errors = translating_errors
        self._stop = threading.Event()
        self._pool: ThreadPoolExecutor | None = None
        self._requested: deque[tuple[int, Future[ByteRange]]] = deque()  # where each ends
        self._stat_at_open: Stat | None = None  # of a store that reports no version with a range
        try:
            self._first = retry(lambda: store.get(path, 0, FIRST_BLOCK), retries)
        except RangeNotSatisfiable:
            self._first = EMPTY
        if self._first.version is None:
            self._stat_at_open = retry(lambda: store.head(path), retries)
        self._opened = self._stat_at_open or Stat(self._first.total, self._first.version or "")
        # The block that is being read, where it starts in the object, and the place in it.
        self._block, self._start, self._position = self._first.data, 0, 0
        self._requested_bytes, self._request_size = len(self._block), FIRST_BLOCK
        self._request_blocks()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def stat(self) -> Stat | None:
        """As it was opened; every later block is compared with that. None for an empty object, of
        which no range was read."""
        return None if self._first is EMPTY else self._opened

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Forward only. Blocks that are passed over are not waited for, and not requested where
        they were not yet."""
        position = self._start + self._position
        offset += position if whence == io.SEEK_CUR else 0
        if whence == io.SEEK_END or offset < position:
            raise io.UnsupportedOperation("a stream goes forward only")
        if offset <= self._start + len(self._block):
            self._position = offset - self._start
            return offset
        while self._requested and self._requested[0][0] <= offset:
            self._requested.popleft()[1].cancel()
        if not self._requested:
            self._requested_bytes = max(self._requested_bytes, min(offset, self._first.total))
        self._block, self._start, self._position = b"", offset, 0
        self._request_blocks()
        return offset

    def readinto(self, buffer: Any, /) -> int:
        if self._position == len(self._block) and not self._next_block():
            return 0
        data = self._block[self._position : self._position + len(buffer)]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        self._stop.set()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        self._requested.clear()
        super().close()

    def _next_block(self) -> bool:
        position = self._start + self._position
        self._block, self._start, self._position = b"", position, 0
        with self._translating_errors():
            if self._requested:
                piece = self._requested.popleft()[1].result()
                self._block, self._start = piece.data, piece.start
                self._position = position - piece.start
            elif self._stat_at_open is not None:
                self._check_unchanged(self._stat_at_open)
        self._request_blocks()
        return bool(self._block)

    def _check_unchanged(self, expected: Stat) -> None:
        self._stat_at_open = None
        if retry(lambda: self._store.head(self._path), self._retries) != expected:
            raise VersionChanged(expected.version)

    def _request_blocks(self) -> None:
        while len(self._requested) < PREFETCH_BLOCKS and self._requested_bytes < self._first.total:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(PREFETCH_BLOCKS, "chiasm-fetch")
            self._request_size = min(BLOCK, 4 * self._request_size)
            size = min(self._request_size, self._first.total - self._requested_bytes)
            fetch = self._pool.submit(self._fetch, self._requested_bytes, size)
            self._requested_bytes += size
            self._requested.append((self._requested_bytes, fetch))

    def _fetch(self, start: int, size: int) -> ByteRange:
        first, retries = self._first, self._retries
        return fetch_range(self._store, self._path, start, size, first, retries, self._stop)


def fetch_range(
    store: ReadableStore,
    path: str,
    start: int,
    size: int,
    same_as: ByteRange,
    retries: RetrySettings,
    stop: threading.Event | None = None,
) -> ByteRange:
    """A range of the object of which `same_as` is another range; VersionChanged where the object
    has another size or version by now, Cancelled once `stop` is set."""

    def request() -> ByteRange:
        try:
            piece = store.get(path, start, size)
        except RangeNotSatisfiable as error:
            raise VersionChanged(same_as.version or "") from error
        except RangesUnsupported as error:
            # The server did send a range before: something on the way ignored this one.
            raise TransientError("the whole file in place of a range") from error
        if (piece.total, piece.version) != (same_as.total, same_as.version):
            raise VersionChanged(same_as.version or "")
        return piece

    return retry(request, retries, stop)


class ResponseReader(io.RawIOBase):
    """An object of a server without ranges, as one response, started anew where it breaks.

    Attempts are counted from the last new byte. Two responses have to report the same size before
    it is believed, since nothing else shows a wrong one."""

    def __init__(
        self, first: RangesUnsupported, retries: RetrySettings, translating_errors: ErrorContext
    ) -> None:
        self._request, self._retries = first.request, retries
        self._translating_errors = translating_errors
        self._delivered = 0
        self._stat = Stat(first.size, first.version)
        self._response: OpenResponse | None = None
        self._response = retry(lambda: self._open(), retries)

    def readable(self) -> bool:
        return True

    def stat(self) -> Stat:
        """Without the size, which is believed only once two responses agree on it."""
        return Stat(-1, self._stat.version)

    def readinto(self, buffer: Any, /) -> int:
        with self._translating_errors():
            data = retry(lambda: self._read(len(buffer)), self._retries)
        buffer[: len(data)] = data
        self._delivered += len(data)
        return len(data)

    def close(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None
        super().close()

    def _open(self) -> OpenResponse:
        response = self._request()
        expected, found = self._stat, Stat(response.size, response.version)
        if found == expected:
            return response
        response.close()
        if found.version != expected.version:
            raise VersionChanged(expected.version)
        if found.version or not self._delivered:
            self._stat = found  # until another response says otherwise
        raise TransientError(f"reported as {expected.size} bytes, then as {found.size}")

    def _read(self, size: int) -> bytes:
        try:
            if self._response is None:
                self._response = self._open()
                self._skip_delivered(self._response)
            data = self._response.read(size)
            if not data and self._delivered < self._stat.size:
                raise TransientError(f"{self._delivered} bytes of {self._stat.size}")
            return data
        except TransientError:
            if self._response is not None:
                self._response.close()
                self._response = None
            raise

    def _skip_delivered(self, response: OpenResponse) -> None:
        remaining = self._delivered
        while remaining:
            data = response.read(min(remaining, BUFFER))
            if not data:
                skipped = self._delivered - remaining
                raise TransientError(f"{skipped} bytes of the {self._delivered} read before")
            remaining -= len(data)


class SeekableReader(io.RawIOBase):
    """An object with random access by range requests, as Parquet needs it. Opening it requests the
    size and the last `tail` bytes, TAIL where that is 0."""

    def __init__(
        self,
        store: ReadableStore,
        path: str,
        retries: RetrySettings,
        translating_errors: ErrorContext,
        tail: int = 0,
    ) -> None:
        self._store, self._path, self._retries = store, path, retries
        self._translating_errors = translating_errors
        self._position, tail = 0, tail or TAIL
        with translating_errors():
            try:
                self._tail = retry(lambda: store.get(path, -tail, tail), retries)
            except RangeNotSatisfiable:
                self._tail = EMPTY
        self._size = self._tail.total

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        """`size` bytes, fewer only at the end; more than a block is requested in parallel."""
        remaining = max(0, self._size - self._position)
        wanted = remaining if size is None or size < 0 else min(size, remaining)
        starts = range(self._position, self._position + wanted, BLOCK)
        ranges = [(start, min(BLOCK, self._position + wanted - start)) for start in starts]
        self._position += wanted
        with self._translating_errors():
            if len(ranges) < 2:
                return b"".join(self._range(*part) for part in ranges)
            with ThreadPoolExecutor(PREFETCH_BLOCKS, "chiasm-fetch") as pool:
                return b"".join(pool.map(lambda part: self._range(*part), ranges))

    def readinto(self, buffer: Any, /) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _range(self, start: int, size: int) -> bytes:
        in_tail = start - self._tail.start
        if in_tail >= 0:
            return self._tail.data[in_tail : in_tail + size]
        return fetch_range(self._store, self._path, start, size, self._tail, self._retries).data

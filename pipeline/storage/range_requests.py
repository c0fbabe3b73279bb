"""Range requests over HTTP, as S3 and web servers have them, and fsspec's event loop."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from chiasm.pipeline.storage.object_store import ByteRange
from chiasm.pipeline.storage.store_errors import TransientError

# At 1 KiB/s a shard of 1 GB would take twelve days, at three requests at once still four.
PACE_SECONDS = 60.0
PACE_BYTES = 60 << 10


@dataclass(frozen=True, slots=True)
class ContentRange:
    """The header `Content-Range: bytes first-last/total`. total: -1 where it is `*`."""

    text: str
    first: int
    last: int
    total: int


def range_header(start: int, size: int) -> str:
    """The value of `Range`; a negative `start` counts from the end of the object."""
    return f"bytes={start}" if start < 0 else f"bytes={start}-{start + size - 1}"


def parse_content_range(text: str | None) -> ContentRange:
    """TransientError for what is no range of bytes."""
    first_last, _, total = (text or "").removeprefix("bytes").strip().partition("/")
    try:
        first, last = map(int, first_last.split("-"))
        size = -1 if total == "*" else int(total)
        if (size < 0) != (total == "*") or size >= 1 << 63:
            raise ValueError
    except ValueError:
        raise TransientError(f"a Content-Range of {(text or '')[:100]!r}") from None
    return ContentRange(text or "", first, last, size)


def checked_range(
    data: bytes, found: ContentRange, start: int, size: int, version: str
) -> ByteRange:
    """A response to `range_header(start, size)`, compared with its `Content-Range`; TransientError
    where it is another range or not whole.

    data: at most size + 1 bytes of the response, whose total is known."""
    expected = max(0, found.total + start) if start < 0 else start
    wanted = min(size, found.total - expected)
    if (found.first, found.last) != (expected, expected + wanted - 1) or len(data) != wanted:
        more = "more than " if len(data) > size else ""
        received = (
            f"{more}{min(len(data), size)} bytes with a Content-Range of {found.text[:100]!r}"
        )
        raise TransientError(f"{received} in place of {wanted} bytes from byte {expected} on")
    return ByteRange(expected, data, found.total, version)


class Pace:
    """How fast a response comes in. One that drips is never silent, and could hold its reader for
    ever. What counts is the time of waiting: a reader may be slow itself."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waited, self._received = 0.0, 0

    async def read(self, read: Callable[[int], Awaitable[bytes]], size: int) -> bytes:
        """What `read(size)` returns; TransientError once PACE_SECONDS of waiting have brought fewer
        than PACE_BYTES."""
        began = self._clock()
        data = await read(size)
        self._waited += self._clock() - began
        self._received += len(data)
        if data and self._waited >= PACE_SECONDS:
            if self._received < PACE_BYTES:
                raise TransientError(f"{self._received} bytes in {self._waited:.0f} s")
            self._waited, self._received = 0.0, 0
        return data


async def read_at_most(
    read: Callable[[int], Awaitable[bytes]], size: int, pace: Pace | None = None
) -> bytes:
    """The first `size` bytes of a body that `read` reads in chunks; fewer only at its end.
    TransientError where it comes in too slowly."""
    pace = pace or Pace()
    chunks: list[bytes] = []
    while size > 0 and (chunk := await pace.read(read, size)):
        chunks.append(chunk)
        size -= len(chunk)
    return b"".join(chunks)


def silence_loop(loop: Any) -> None:
    """Keep asyncio's messages about the tasks of a broken connection off stderr: the request that
    used it fails and reports the reason."""
    loop.call_soon_threadsafe(loop.set_exception_handler, lambda loop, context: None)

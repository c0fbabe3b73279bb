"""Range requests over HTTP, as S3 and web servers have them, and fsspec's event loop."""

from __future__ import annotations

from typing import Any

from chiasm.pipeline.storage.object_store import ByteRange
from chiasm.pipeline.storage.store_errors import TransientError


def range_header(start: int, size: int) -> str:
    """The value of `Range`; a negative `start` counts from the end of the object."""
    return f"bytes={start}" if start < 0 else f"bytes={start}-{start + size - 1}"


def checked_range(
    data: bytes, content_range: str | None, start: int, size: int, version: str
) -> ByteRange:
    """A response to `range_header(start, size)`, compared with its `Content-Range`; TransientError
    where it is another range or not whole."""
    try:
        first_last, _, total_text = (
            (content_range or "").removeprefix("bytes").strip().partition("/")
        )
        first, last = map(int, first_last.split("-"))
        total = int(total_text)
    except ValueError:
        raise TransientError(f"a Content-Range of {content_range!r}") from None
    expected = max(0, total + start) if start < 0 else start
    wanted = min(size, total - expected)
    if (first, last) != (expected, expected + wanted - 1) or len(data) != wanted:
        found = f"{len(data)} bytes with a Content-Range of {content_range!r}"
        raise TransientError(f"{found} in place of {wanted} bytes from byte {expected} on")
    return ByteRange(expected, data, total, version)


def silence_loop(loop: Any) -> None:
    """Keep asyncio's messages about the tasks of a broken connection off stderr: the request that
    used it fails and reports the reason."""
    loop.call_soon_threadsafe(loop.set_exception_handler, lambda loop, context: None)

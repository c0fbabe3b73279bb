"""HTTP and HTTPS, read only, on fsspec's event loop.

A file is read by ranges, in the encoding in which it is stored (`Accept-Encoding: identity`), and
no more is read of a response than was requested. Redirects are followed as `web_requests.py` says,
`~/.netrc` and the environment's proxies are used. A server that answers a range with the whole file
raises `RangesUnsupported`, and the file is then read as one response. The size is that of a
`Content-Range` or, where that says `*`, of a whole response whose body is left unread; never of a
HEAD, which some servers refuse or answer wrongly.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import aiohttp
from fsspec.asyn import get_loop, sync
from fsspec.exceptions import FSTimeoutError

from chiasm.pipeline.storage.backend import Stat
from chiasm.pipeline.storage.object_store import ByteRange, RangesUnsupported
from chiasm.pipeline.storage.range_requests import (
    Pace,
    checked_range,
    parse_content_range,
    range_header,
    read_at_most,
    silence_loop,
)
from chiasm.pipeline.storage.retry import RetrySettings
from chiasm.pipeline.storage.store_errors import (
    NotFound,
    RangeNotSatisfiable,
    Refused,
    TransientError,
    one_line,
    one_line_message,
    raise_if_untrusted,
)
from chiasm.pipeline.storage.web_requests import WebRequests


class WebStore:
    """Files of web servers; a ReadableStore."""

    def __init__(self, retries: RetrySettings) -> None:
        self._loop = get_loop()
        self._requests = WebRequests(self._loop, retries)
        silence_loop(self._loop)

    def head(self, path: str) -> Stat:
        try:
            piece = self.get(path, 0, 1)
        except RangeNotSatisfiable:
            return Stat(0, "")
        except RangesUnsupported as error:
            return Stat(error.size, error.version)
        return Stat(piece.total, piece.version or "")

    def get(self, path: str, start: int, size: int) -> ByteRange:
        async def fetch() -> tuple[aiohttp.ClientResponse, bytes]:
            headers = {"Range": range_header(start, size)}
            async with await self._requests.get(path, headers) as response:
                if response.status == 416:
                    return response, b""
                _check(response)
                if response.status != 206:
                    return response, b""
                return response, await read_at_most(response.content.read, size + 1)

        with _translating_errors():
            fetched: Any = sync(self._loop, fetch)
        response, data = fetched
        version, content_range = _version(response), response.headers.get("Content-Range")
        if response.status == 416:
            total = _total(content_range or "")
            if start > 0 or total == 0:
                raise RangeNotSatisfiable
            raise self._whole_only(path)
        if response.status == 200:
            raise RangesUnsupported(_length(response), version, lambda: self._open(path))
        found = parse_content_range(content_range)
        if found.total < 0:
            whole = self._whole_only(path)
            if whole.size < 0:
                raise whole
            if whole.version != version:
                raise TransientError("another version in the next response")
            found = replace(found, total=whole.size)
        return checked_range(data, found, start, size, version)

    def _whole_only(self, path: str) -> RangesUnsupported:
        """What a server says of the whole file, whose body is left unread; RangeNotSatisfiable
        where that is empty."""
        response = self._open(path)
        response.close()
        if response.size == 0:
            raise RangeNotSatisfiable
        return RangesUnsupported(response.size, response.version, lambda: self._open(path))

    def _open(self, path: str) -> WebResponse:
        async def request() -> aiohttp.ClientResponse:
            response = await self._requests.get(path, {})
            try:
                _check(response)
                if response.status != 200:
                    raise TransientError("a part of the file in place of all of it")
            except BaseException:
                response.close()
                raise
            return response

        with _translating_errors():
            response: Any = sync(self._loop, request)
        return WebResponse(self._loop, response)


class WebResponse:
    """A whole file, still arriving; an OpenResponse. size: -1 where the server reports none."""

    def __init__(self, loop: Any, response: aiohttp.ClientResponse) -> None:
        self._loop, self._response = loop, response
        self.size, self.version = _length(response), _version(response)
        self._pace = Pace()

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, none at the end; TransientError where the connection breaks, or the
        server lets it drip."""
        with _translating_errors():
            data: Any = sync(self._loop, self._pace.read, self._response.content.read, size)
        return data

    def close(self) -> None:
        async def close() -> None:
            self._response.close()

        sync(self._loop, close)


def _check(response: aiohttp.ClientResponse) -> None:
    status = response.status
    line = one_line(f"{status} {response.reason or ''}")
    if status in (404, 410):
        raise NotFound(line)
    if (status >= 500 and status != 501) or status in (408, 425, 429):
        raise TransientError(line)
    if status not in (200, 206):
        raise Refused(line, "check ~/.netrc and the URL (docs/operations.md)")


def _length(response: aiohttp.ClientResponse) -> int:
    return -1 if response.content_length is None else response.content_length


def _total(content_range: str) -> int:
    """The size in the `Content-Range: bytes */size` of a 416, -1 where there is none."""
    try:
        return max(-1, int(content_range.rpartition("/")[2]))
    except ValueError:
        return -1


def _version(response: aiohttp.ClientResponse) -> str:
    """The ETag, weak or not, since it is only compared with itself; else Last-Modified."""
    etag = response.headers.get("ETag", "").removeprefix("W/").strip('"')
    return etag or response.headers.get("Last-Modified", "")


@contextmanager
def _translating_errors() -> Iterator[None]:
    """Raise StoreErrors in place of what aiohttp raises."""
    try:
        yield
    except aiohttp.InvalidURL as error:
        raise Refused(f"no URL: {one_line_message(error)}", "check the URL") from error
    except (TimeoutError, aiohttp.ClientError, FSTimeoutError, OSError) as error:
        raise_if_untrusted(error, "SSL_CERT_FILE")
        raise TransientError(one_line_message(error)) from error

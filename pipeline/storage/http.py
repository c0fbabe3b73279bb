"""HTTP and HTTPS through fsspec's filesystem and its session; read only.

A file is read by ranges, in the encoding in which it is stored (`Accept-Encoding: identity`).
Redirects are followed, `~/.netrc` and the environment's proxies are used. A server that answers a
range with the whole file raises `RangesUnsupported`, and the file is then read as one response. The
size is that of a `Content-Range`, never of a HEAD, which some servers refuse or answer wrongly.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
from fsspec.asyn import sync
from fsspec.exceptions import FSTimeoutError
from fsspec.implementations.http import HTTPFileSystem

from chiasm.pipeline.storage.backend import Stat
from chiasm.pipeline.storage.object_store import ByteRange, RangesUnsupported
from chiasm.pipeline.storage.range_requests import checked_range, range_header, silence_loop
from chiasm.pipeline.storage.retry import RetrySettings
from chiasm.pipeline.storage.store_errors import (
    NotFound,
    RangeNotSatisfiable,
    Refused,
    TransientError,
    one_line_message,
    raise_if_untrusted,
)


class WebStore:
    """Files of web servers; a ReadableStore."""

    def __init__(self, retries: RetrySettings) -> None:
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=min(10.0, retries.timeout), sock_read=retries.timeout
        )
        self.fs = HTTPFileSystem(
            use_listings_cache=False,
            skip_instance_cache=True,
            encoded=True,
            # A .tar.gz may be sent with `Content-Encoding: gzip`: it is unpacked where tars are
            # read.
            client_kwargs={"trust_env": True, "timeout": timeout, "auto_decompress": False},
        )
        silence_loop(self.fs.loop)

    def head(self, path: str) -> Stat:
        try:
            piece = self.get(path, 0, 1)
        except RangeNotSatisfiable as error:
            return Stat(max(0, error.total), "")
        except RangesUnsupported as error:
            return Stat(error.size, error.version)
        return Stat(piece.total, piece.version or "")

    def get(self, path: str, start: int, size: int) -> ByteRange:
        async def fetch() -> tuple[aiohttp.ClientResponse, bytes | None]:
            headers = {"Range": range_header(start, size)}
            async with await self._request(path, headers) as response:
                if response.status == 416:
                    raise RangeNotSatisfiable(_total(response.headers.get("Content-Range", "")))
                _check(response)
                return response, await response.read() if response.status == 206 else None

        with _translating_errors():
            fetched: Any = sync(self.fs.loop, fetch)
        response, data = fetched
        version = _version(response)
        if data is None:
            raise RangesUnsupported(_length(response), version, lambda: self._open(path))
        return checked_range(data, response.headers.get("Content-Range"), start, size, version)

    def _open(self, path: str) -> WebResponse:
        async def request() -> aiohttp.ClientResponse:
            response = await self._request(path, {})
            try:
                _check(response)
            except BaseException:
                response.close()
                raise
            return response

        with _translating_errors():
            response: Any = sync(self.fs.loop, request)
        return WebResponse(self.fs.loop, response)

    async def _request(self, url: str, headers: dict[str, str]) -> aiohttp.ClientResponse:
        session = await self.fs.set_session()
        headers = {"Accept-Encoding": "identity", **headers}
        return await session.get(self.fs.encode_url(url), headers=headers)


class WebResponse:
    """A whole file, still arriving; an OpenResponse. size: -1 where the server reports none."""

    def __init__(self, loop: Any, response: aiohttp.ClientResponse) -> None:
        self._loop, self._response = loop, response
        self.size, self.version = _length(response), _version(response)

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, none at the end; TransientError where the connection breaks."""
        with _translating_errors():
            data: Any = sync(self._loop, self._response.content.read, size)
        return data

    def close(self) -> None:
        async def close() -> None:
            self._response.close()

        sync(self._loop, close)


def _check(response: aiohttp.ClientResponse) -> None:
    status = response.status
    line = f"{status} {response.reason or ''}".strip()
    if status in (404, 410):
        raise NotFound(line)
    if (status >= 500 and status != 501) or status in (408, 425, 429):
        raise TransientError(line)
    if status not in (200, 206):
        raise Refused(line, "check ~/.netrc and the URL (docs/operations.md)")


def _length(response: aiohttp.ClientResponse) -> int:
    return -1 if response.content_length is None else response.content_length


def _total(content_range: str) -> int:
    total = content_range.rpartition("/")[2]
    return int(total) if total.isdecimal() and len(total) < 20 else -1


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
        raise Refused(f"no URL: {one_line_message(error)}") from error
    except aiohttp.TooManyRedirects as error:
        raise Refused("more than ten redirects") from error
    except (TimeoutError, aiohttp.ClientError, FSTimeoutError, OSError) as error:
        raise_if_untrusted(error, "SSL_CERT_FILE")
        raise TransientError(one_line_message(error)) from error

"""HTTP and HTTPS by fsspec's filesystem and its session; only read.

Asked for is what lies there, unpacked by nobody on the way (`identity`), a range at a time.
Redirects are followed, `~/.netrc` and proxies of the environment are heeded. A server that answers
a range with the whole file is told by `NoRanges`, and read by one answer. The size is taken from a
range's total, never from a HEAD, which some servers refuse or answer wrongly.
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
from chiasm.pipeline.storage.object_store import (
    ByteRange,
    NoRanges,
    byte_range,
    one_line,
    require_trusted,
    silence_loop,
)
from chiasm.pipeline.storage.retry import NotFound, PastEnd, Refused, RetrySettings, TransientError


class WebStore:
    """Files of web servers: they are read, never listed or written."""

    def __init__(self, retries: RetrySettings) -> None:
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=min(10.0, retries.timeout), sock_read=retries.timeout
        )
        self.fs = HTTPFileSystem(
            use_listings_cache=False,
            skip_instance_cache=True,
            encoded=True,
            # A body that says it is gzip is what a .tar.gz is: it is unpacked where tars are read.
            client_kwargs={"trust_env": True, "timeout": timeout, "auto_decompress": False},
        )
        silence_loop(self.fs.loop)

    def head(self, path: str) -> Stat:
        try:
            piece = self.get(path, 0, 1)
        except PastEnd as end:
            return Stat(max(0, end.total), "")
        except NoRanges as whole:
            return Stat(whole.size, whole.version)
        return Stat(piece.total, piece.version or "")

    def get(self, path: str, start: int, size: int) -> ByteRange:
        asked = f"bytes={start}" if start < 0 else f"bytes={start}-{start + size - 1}"

        async def fetch() -> tuple[aiohttp.ClientResponse, bytes | None]:
            async with await self._ask(path, {"Range": asked}) as answer:
                if answer.status == 416:
                    raise PastEnd(_total(answer.headers.get("Content-Range", "")))
                _check(answer)
                return answer, await answer.read() if answer.status == 206 else None

        with _told():
            found: Any = sync(self.fs.loop, fetch)
        answer, data = found
        version = _version(answer)
        if data is None:
            raise NoRanges(_length(answer), version, lambda: self._whole(path))
        return byte_range(data, answer.headers.get("Content-Range"), start, size, version)

    def _whole(self, path: str) -> WebAnswer:
        async def ask() -> aiohttp.ClientResponse:
            answer = await self._ask(path, {})
            try:
                _check(answer)
            except BaseException:
                answer.close()
                raise
            return answer

        with _told():
            answer: Any = sync(self.fs.loop, ask)
        return WebAnswer(self.fs.loop, answer)

    async def _ask(self, url: str, headers: dict[str, str]) -> aiohttp.ClientResponse:
        session = await self.fs.set_session()
        headers = {"Accept-Encoding": "identity", **headers}
        return await session.get(self.fs.encode_url(url), headers=headers)


class WebAnswer:
    """A whole file, coming. `size` is -1 where the server does not tell."""

    def __init__(self, loop: Any, answer: aiohttp.ClientResponse) -> None:
        self._loop, self._answer = loop, answer
        self.size, self.version = _length(answer), _version(answer)

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, none at the end; Passing where the answer breaks off."""
        with _told():
            data: Any = sync(self._loop, self._answer.content.read, size)
        return data

    def close(self) -> None:
        async def close() -> None:
            self._answer.close()

        sync(self._loop, close)


def _check(answer: aiohttp.ClientResponse) -> None:
    status = answer.status
    told = f"{status} {answer.reason or ''}".strip()
    if status in (404, 410):
        raise NotFound(told)
    if (status >= 500 and status != 501) or status in (408, 425, 429):
        raise TransientError(told)
    if status not in (200, 206):
        raise Refused(told, "check ~/.netrc and the URL (docs/operations.md)")


def _length(answer: aiohttp.ClientResponse) -> int:
    return -1 if answer.content_length is None else answer.content_length


def _total(told_range: str) -> int:
    total = told_range.rpartition("/")[2]
    return int(total) if total.isdigit() else -1


def _version(answer: aiohttp.ClientResponse) -> str:
    """The ETag, weak or not: it is compared with itself, byte by byte no server is asked to."""
    etag = answer.headers.get("ETag", "").removeprefix("W/").strip('"')
    return etag or answer.headers.get("Last-Modified", "")


@contextmanager
def _told() -> Iterator[None]:
    """What aiohttp raises, as StoreErrors."""
    try:
        yield
    except aiohttp.InvalidURL as error:
        raise Refused(f"no URL: {one_line(error)}") from error
    except aiohttp.TooManyRedirects as error:
        raise Refused("more than ten redirects") from error
    except (TimeoutError, aiohttp.ClientError, FSTimeoutError, OSError) as error:
        require_trusted(error, "SSL_CERT_FILE")
        raise TransientError(one_line(error)) from error

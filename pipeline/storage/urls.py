"""Functions on one file by URL or path: names, size and version, streams and ranges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from chiasm.pipeline.errors import SourceError
from chiasm.pipeline.storage.backend import Stat, Stream
from chiasm.pipeline.storage.credentials import require_harmless_query
from chiasm.pipeline.storage.schemes import backend_of
from chiasm.pipeline.storage.web_files import WebFiles

B = TypeVar("B")


def canonical_url(path_or_url: str, *, allow_query: bool = False) -> str:
    """One URL for one file: `a.tar` -> `file:///abs/real/a.tar`, symbolic links resolved.

    Raises UsageError for a scheme without a backend, for a URL with credentials and, without
    `allow_query`, for an HTTP URL whose query may hold some."""
    url = backend_of(path_or_url).canonical(path_or_url)
    if not allow_query:
        require_harmless_query(url)
    return url


def display_name(url: str) -> str:
    """The name for messages: the path of a local file, else the URL. Values in an HTTP URL's query
    that may be credentials are `***`."""
    return backend_of(url).display_name(url)


def base_name(url: str) -> str:
    """The last part of the path, unescaped, without the query of an HTTP URL."""
    return backend_of(url).base_name(url)


def require_writable(url: str) -> None:
    """UsageError for a URL of a web server, which is read only. No request is made."""
    backend = backend_of(url)
    if isinstance(backend, WebFiles):
        raise backend.read_only_error(backend.canonical(url))


def stat(url: str) -> Stat:
    """Size and version of a file; SourceError when it is missing or not a file."""
    return backend_of(url).stat(url)


def stat_or_none(url: str) -> Stat | None:
    """Size and version, None where there is nothing; StorageError where that cannot be known."""
    return backend_of(url).stat_or_none(url)


def is_folder(url: str) -> bool:
    """Whether `url` is a folder that can be listed."""
    return backend_of(url).is_folder(url)


def is_remote(url: str) -> bool:
    """Whether reading `url`, or its size, is a request over a network."""
    return backend_of(url).concurrency > 1


def open_stream(url: str) -> Stream:
    """A file for reading from front to back; SourceError when it cannot be opened."""
    return backend_of(url).open_stream(url)


def read_range(url: str, offset: int, size: int) -> bytes:
    """Exactly `size` bytes from `offset` on; SourceError when the file ends before. Memory is
    bounded by the file's size, whatever `size` is."""
    if offset < 0 or size < 0:
        found = f"{size} from byte {offset} on"
        raise SourceError(display_name(url), expected="a range of bytes", found=found)
    return backend_of(url).read_range(url, offset, size)


def glob(pattern: str, *, allow_query: bool = False) -> list[str]:
    """Canonical URLs of what matches a glob (`*`, `?`, `[...]`, `**`), sorted by path. allow_query:
    as in `canonical_url`."""
    if not allow_query:
        require_harmless_query(pattern)
    return list(backend_of(pattern).glob(pattern))


def map_concurrent(call: Callable[[str], B], urls: Sequence[str]) -> list[B]:
    """`call(url)` for every URL, in order; several calls at the same time where one is remote."""
    workers = max((backend_of(url).concurrency for url in urls), default=1)
    if workers == 1:
        return [call(url) for url in urls]
    with ThreadPoolExecutor(workers, "chiasm-map") as pool:
        return list(pool.map(call, urls))

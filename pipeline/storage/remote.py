"""Files of object stores and web servers: the backends of `s3://`, `gs://`, `hf://` and
`http(s)://`.

Objects are read by ranges (`streams.py`) and uploaded whole (`uploads.py`): a name never belongs to
half an object, and a dead run leaves no temporaries, only unfinished multipart uploads, which a
sweep aborts. Failures are one line each: SourceError for a shard, StorageError for a file of a
collection; one that lasted for all attempts is an UnreachableError or says so. URLs are written
into ledgers and logs, so one that carries a password is refused.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Generic, TypeVar

from chiasm.pipeline.errors import SourceError, StorageError, UnreachableError, UsageError
from chiasm.pipeline.storage import retry
from chiasm.pipeline.storage.backend import Stat, Stream
from chiasm.pipeline.storage.credentials import credentials_error, has_user
from chiasm.pipeline.storage.keys import glob_matcher, require_utf8
from chiasm.pipeline.storage.object_store import RangesUnsupported, ReadableStore, Store
from chiasm.pipeline.storage.store_errors import (
    NotFound,
    RangeNotSatisfiable,
    Refused,
    RetriesExhausted,
    StoreError,
    VersionChanged,
    one_line_message,
)
from chiasm.pipeline.storage.streams import BLOCK, SeekableReader, read_ahead
from chiasm.pipeline.storage.uploads import PendingObject

S = TypeVar("S", bound=ReadableStore)
T = TypeVar("T")

_WILDCARD = re.compile(r"[*?\[]")


class ReadableFiles(Generic[S]):
    """The reading half of both backends. `get_store` returns the process's store."""

    concurrency = 16

    def __init__(self, scheme: str, get_store: Callable[[], S]) -> None:
        self.scheme, self._get_store = scheme, get_store

    @property
    def store(self) -> S:
        return self._get_store()

    def display_name(self, url: str) -> str:
        return url

    def join(self, url: str, name: str) -> str:
        return f"{url.rstrip('/')}/{name}"

    def local(self, url: str) -> Path | None:
        return None

    def path(self, url: str) -> str:
        """The object's path in its store."""
        return url.partition("://")[2]

    def stat(self, url: str) -> Stat:
        with self._source_errors(url):
            return self._retry(lambda: self.store.head(self.path(url)))

    def stat_or_none(self, url: str) -> Stat | None:
        with self._storage_errors(url):
            try:
                return self._retry(lambda: self.store.head(self.path(url)))
            except NotFound:
                return None

    def open_stream(self, url: str) -> Stream:
        path, retries = self.path(url), retry.RETRIES
        return read_ahead(self.store, path, retries, lambda: self._source_errors(url))

    def open_seekable(self, url: str) -> io.RawIOBase:
        return self._seekable(url)

    def _seekable(self, url: str, tail: int = 0) -> SeekableReader:
        path, retries = self.path(url), retry.RETRIES
        return SeekableReader(self.store, path, retries, lambda: self._storage_errors(url), tail)

    def read_bytes(self, url: str) -> bytes:
        # What is read whole is mostly small: one request.
        return self._seekable(url, BLOCK).read()

    def read_range(self, url: str, offset: int, size: int) -> bytes:
        if not size:
            return b""
        with self._source_errors(url):
            # All that comes is kept in memory. A size that is worth a request of its own is
            # compared with the file's first.
            total = self.stat(url).size if size > BLOCK else -1
            if total < 0 or offset + size <= total:
                data = self._read_range(url, offset, size)
                if len(data) == size:
                    return data
                found = len(data)
            else:
                found = max(0, total - offset)
        raise SourceError(
            self.display_name(url),
            expected=f"{size} bytes from byte {offset} on",
            found=f"{found}",
            do="it is shorter than when it was listed: embed it again",
        )

    def _read_range(self, url: str, offset: int, size: int) -> bytes:
        """Fewer bytes only where the file ends."""

        def request() -> bytes:
            try:
                return self._retry(lambda: self.store.get(self.path(url), offset, size)).data
            except RangeNotSatisfiable:
                return b""

        try:
            return request()
        except RangesUnsupported:
            try:
                return request()  # a mirror or proxy may have ignored that one range
            except RangesUnsupported:
                return self._read_after_skipping(url, offset, size)

    def _read_after_skipping(self, url: str, offset: int, size: int) -> bytes:
        with self.open_stream(url) as stream:
            for _ in _chunks(stream, offset):
                pass
            return b"".join(_chunks(stream, size))

    def _retry(self, call: Callable[[], T]) -> T:
        return retry.retry(call, retry.RETRIES)

    def _source_errors(self, url: str) -> AbstractContextManager[None]:
        return _translating_errors(self.display_name(url), SourceError, "a file to read")

    def _storage_errors(self, url: str) -> AbstractContextManager[None]:
        return _translating_errors(self.display_name(url), StorageError, "a usable file")


class ObjectFiles(ReadableFiles[Store]):
    """The backend of a scheme with buckets, listings and puts."""

    def canonical(self, url: str) -> str:
        """Keys are not escaped and double slashes stay, as S3 tools have it."""
        rest = url.partition("://")[2]
        if has_user(f"{self.scheme}://{rest}"):
            do = "docs/operations.md says where they go"
            raise credentials_error(f"{self.scheme}://***", do)
        if not rest.partition("/")[0]:
            raise UsageError(url, expected=f"{self.scheme}://bucket/key", found="no bucket")
        require_utf8(url)
        return f"{self.scheme}://{rest}"

    def base_name(self, url: str) -> str:
        return url.rpartition("/")[2]

    def is_folder(self, url: str) -> bool:
        with self._source_errors(url):
            return self._retry(lambda: self.store.is_folder(self.path(url)))

    def glob(self, pattern: str) -> Sequence[str]:
        path = self.path(self.canonical(pattern))
        wildcard = _WILDCARD.search(path)
        if wildcard is None:
            return [self.canonical(pattern)]
        try:
            matches = glob_matcher(path)
        except ValueError as error:
            expected = "a pattern such as folder/**/*.tar"
            raise UsageError(pattern, expected=expected, found=one_line_message(error)) from error
        prefix = path[: wildcard.start()]
        deep = any(mark in path[wildcard.start() :] for mark in ("/", "**"))
        with self._source_errors(pattern):
            folder = prefix if self.scheme == "s3" else prefix.rpartition("/")[0]
            listing = self._retry(lambda: self.store.list(folder, deep=deep))
        # A key that ends in / marks a folder.
        found = (key for key in listing.files if not key.endswith("/") and matches(key))
        return [f"{self.scheme}://{key}" for key in found]

    def folders(self, url: str) -> Sequence[str]:
        with self._storage_errors(url):
            return _base_names(self._retry(lambda: self.store.list(self._folder(url))).folders)

    def list(self, url: str) -> Sequence[str]:
        with self._storage_errors(url):
            return _base_names(self._retry(lambda: self.store.list(self._folder(url))).files)

    def list_stats(self, url: str) -> dict[str, Stat]:
        with self._storage_errors(url):
            found = self._retry(lambda: self.store.list(self._folder(url)))
        stats = {path.rpartition("/")[2]: stat for path, stat in found.stats.items()}
        stats.pop("", None)
        return stats

    def create(self, url: str, run_id: str) -> PendingObject:
        return PendingObject(
            self.store, self.path(url), retry.RETRIES, lambda: self._storage_errors(url), url
        )

    def remove(self, url: str) -> None:
        with self._storage_errors(url):
            try:
                self._retry(lambda: self.store.remove(self.path(url)))
            except NotFound:
                return

    def remove_folder(self, url: str, is_ours: Callable[[str], bool]) -> None:
        for base in self.list(url):
            if is_ours(base):
                self.remove(self.join(url, base))

    def abort_uploads(self, url: str, is_dead: Callable[[str], bool]) -> Sequence[str]:
        with self._storage_errors(url):
            return self.store.abort_uploads(self._folder(url), is_dead)

    def _folder(self, url: str) -> str:
        return f"{self.path(url).rstrip('/')}/"


def _chunks(stream: io.BufferedReader, size: int) -> Iterator[bytes]:
    """The next `size` bytes of a stream, fewer where it ends."""
    while size and (chunk := stream.read(min(size, 1 << 20))):
        size -= len(chunk)
        yield chunk


def _base_names(paths: Iterable[str]) -> list[str]:
    """Sorted last parts of paths. A key that ends in / only marks a folder, and one that ends in
    /. or /.. has no name inside a folder: other tools' keys, which a store may hold."""
    bases = (path.rpartition("/")[2] for path in paths)
    return sorted(base for base in bases if base not in ("", ".", ".."))


@contextmanager
def _translating_errors(
    url: str, error_type: type[SourceError | StorageError], expected: str
) -> Iterator[None]:
    """Raise `error_type` in place of StoreErrors; UnreachableError in place of a SourceError after
    the last retry."""
    try:
        yield
    except RetriesExhausted as error:
        exhausted = UnreachableError if error_type is SourceError else error_type
        do = "check the network and the endpoint, then run the same command again"
        raise exhausted(url, expected="an answer", found=str(error), do=do) from error
    except VersionChanged as error:
        raise error_type(
            url,
            expected=f"the object that was opened (version {error})",
            found="another: it changed while it was read",
            do="run the same command again",
        ) from error
    except NotFound as error:
        do = "check the name"
        raise error_type(url, expected=expected, found="nothing there", do=do) from error
    except Refused as error:
        raise error_type(url, expected=expected, found=str(error), do=error.do) from error
    except StoreError as error:
        raise error_type(url, expected=expected, found=str(error)) from error

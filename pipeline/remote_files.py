"""Objects of stores: the backend of `s3://`, `gs://`, `hf://` and `http(s)://` URLs.

Nothing here is a file of this machine. What is read comes by ranges (`pipeline.streams`); what is
written is gathered, in memory and then in an unnamed temporary file, and is put whole: a name never
stands for half an object, and a dead run leaves no temporaries, only uploads in parts that nobody
completed, which a sweep abandons. Every failure leaves here as one line: a SourceError when a shard
was read, a StorageError in a collection; one that lasted for all attempts is an UnreachableError
or says so.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from pipeline import stores
from pipeline.backend import Stat, Unfinished
from pipeline.errors import SourceError, StorageError, UnreachableError, UsageError
from pipeline.retries import (
    Absent,
    Changed,
    NoRanges,
    PastEnd,
    Refused,
    RetrySettings,
    StoreError,
    Unreachable,
    persist,
)
from pipeline.stores import Piece, Store, store_of
from pipeline.streams import Seekable, read_ahead
from pipeline.uploads import PendingObject

_WILD = re.compile(r"[*?\[]")


class RemoteFiles:
    """The backend of one scheme. A `path` is what its store calls the object."""

    at_once = 16

    def __init__(self, scheme: str) -> None:
        self.scheme = scheme

    @property
    def retries(self) -> RetrySettings:
        return stores.RETRIES

    @property
    def store(self) -> Store:
        return store_of(self.scheme)

    def canonical(self, url: str) -> str:
        """As people write it: the key is not escaped, double slashes stay."""
        rest = url.partition("://")[2]
        if not rest.partition("/")[0]:
            raise UsageError(url, expected=f"{self.scheme}://bucket/key", found="no bucket")
        return f"{self.scheme}://{rest}"

    def shown(self, url: str) -> str:
        return url

    def base(self, url: str) -> str:
        return url.rpartition("/")[2]

    def join(self, url: str, name: str) -> str:
        return f"{url.rstrip('/')}/{name}"

    def local(self, url: str) -> Path | None:
        return None

    def path(self, url: str) -> str:
        return url.partition("://")[2]

    def stat(self, url: str) -> Stat:
        with self._reading(url):
            return self._persist(lambda: self.store.head(self.path(url)))

    def is_folder(self, url: str) -> bool:
        with self._reading(url):
            return self._persist(lambda: self.store.is_folder(self.path(url)))

    def open_stream(self, url: str) -> io.BufferedReader:
        return read_ahead(self.store, self.path(url), self.retries, lambda: self._reading(url))

    def open_random(self, url: str) -> io.RawIOBase:
        return Seekable(self.store, self.path(url), self.retries, lambda: self._keeping(url))

    def read_range(self, url: str, offset: int, size: int) -> bytes:
        if not size:
            return b""
        with self._reading(url):
            try:
                data = self._range(url, offset, size).data
            except PastEnd:
                data = b""
            except NoRanges:
                data = self._passed_over(url, offset, size)
        if len(data) < size:
            raise SourceError(
                self.shown(url),
                expected=f"{size} bytes from byte {offset} on",
                found=f"{len(data)}",
                do="it is shorter than when it was listed: embed it again",
            )
        return data

    def _range(self, url: str, offset: int, size: int) -> Piece:
        return self._persist(lambda: self.store.get(self.path(url), offset, size))

    def _passed_over(self, url: str, offset: int, size: int) -> bytes:
        with self.open_stream(url) as stream:
            while offset and (some := stream.read(min(offset, 1 << 20))):
                offset -= len(some)
            return b"" if offset else stream.read(size)

    def find(self, pattern: str) -> Sequence[str]:
        from fsspec.utils import glob_translate  # fsspec is imported where such a URL is used

        path = self.path(self.canonical(pattern))
        wild = _WILD.search(path)
        if wild is None:
            return [self.canonical(pattern)]
        fixed = path[: wild.start()]
        deep = "/" in path[wild.start() :]
        with self._reading(pattern):
            folder = fixed if self.scheme == "s3" else fixed.rpartition("/")[0]
            listing = self._persist(lambda: self.store.list(folder, deep=deep))
        matches = re.compile(glob_translate(path)).fullmatch
        return [f"{self.scheme}://{key}" for key in listing.files if matches(key)]

    def exists(self, url: str) -> bool:
        with self._keeping(url):
            try:
                self._persist(lambda: self.store.head(self.path(url)))
            except Absent:
                return False
        return True

    def folders(self, url: str) -> Sequence[str]:
        with self._keeping(url):
            found = self._persist(lambda: self.store.list(self._folder(url)))
        return sorted(path.rpartition("/")[2] for path in found.folders)

    def list(self, url: str) -> Sequence[str]:
        with self._keeping(url):
            found = self._persist(lambda: self.store.list(self._folder(url)))
        bases = (path.rpartition("/")[2] for path in found.files)
        return sorted(base for base in bases if base)  # a key that ends in / marks a folder

    def read_bytes(self, url: str) -> bytes:
        file = self.open_random(url)
        with self._keeping(url):
            return file.read()

    def create(self, url: str, run_id: str) -> PendingObject:
        told = self.shown(url)
        return PendingObject(
            self.store, self.path(url), self.retries, lambda: self._keeping(url), told
        )

    def remove(self, url: str) -> None:
        with self._keeping(url):
            try:
                self._persist(lambda: self.store.remove(self.path(url)))
            except Absent:
                return

    def remove_folder(self, url: str) -> None:
        for base in self.list(url):
            self.remove(self.join(url, base))

    def unfinished(self, url: str) -> Sequence[Unfinished]:
        with self._keeping(url):
            return self._persist(lambda: self.store.unfinished(self._folder(url)))

    def abandon(self, upload: Unfinished) -> None:
        with self._keeping(upload.url):
            path = self.path(upload.url)
            self._persist(lambda: self.store.abandon(path, upload.upload))

    def _folder(self, url: str) -> str:
        return f"{self.path(url).rstrip('/')}/"

    def _persist(self, call: Any) -> Any:
        return persist(lambda _: call(), self.retries)

    def _reading(self, url: str) -> AbstractContextManager[None]:
        return _told_as_source_error(self.shown(url))

    def _keeping(self, url: str) -> AbstractContextManager[None]:
        return _told_as_storage_error(self.shown(url))


class WebFiles(RemoteFiles):
    """`http://` and `https://`: read only, no listings. A query string is part of the URL."""

    def canonical(self, url: str) -> str:
        parts = urlsplit(url)
        if not parts.netloc:
            raise UsageError(url, expected=f"{self.scheme}://host/path", found="no host")
        user, at, host = parts.netloc.rpartition("@")
        parts = parts._replace(scheme=self.scheme, netloc=f"{user}{at}{host.lower()}", fragment="")
        # What a request cannot carry is escaped, what is escaped already stays as it is.
        return quote(parts.geturl(), safe="!#$%&'()*+,/:;=?@[]~{}")

    def shown(self, url: str) -> str:
        return re.sub(r"//[^/@]*@", "//***@", url)

    def base(self, url: str) -> str:
        return unquote(urlsplit(url).path.rpartition("/")[2])

    def path(self, url: str) -> str:
        return url

    def is_folder(self, url: str) -> bool:
        if urlsplit(url).path.endswith("/"):
            raise self._unlisted(url)
        return False

    def find(self, pattern: str) -> Sequence[str]:
        if not re.search(r"[*\[]", urlsplit(pattern).path):
            return [self.canonical(pattern)]  # its `?` begins a query
        raise self._unlisted(pattern)

    def list(self, url: str) -> Sequence[str]:
        raise self._unlisted(url)

    def folders(self, url: str) -> Sequence[str]:
        raise self._unlisted(url)

    def create(self, url: str, run_id: str) -> PendingObject:
        raise UsageError(
            self.shown(url),
            expected="a place that can be written",
            found=f"{self.scheme}://",
            do="name a folder or s3://bucket/prefix",
        )

    def _unlisted(self, url: str) -> UsageError:
        return UsageError(
            self.shown(url),
            expected="the URL of a file, or a range such as {00000..00012}",
            found=f"a folder or a pattern, and {self.scheme}:// has no listing",
        )


_REFUSED = "check the credentials and the endpoint (docs/operations.md)"


@contextmanager
def _told_as_source_error(where: str) -> Iterator[None]:
    try:
        yield
    except Unreachable as error:
        raise UnreachableError(
            where, expected="an answer", found=str(error), do="run the same command again later"
        ) from error
    except Changed as error:
        raise SourceError(
            where,
            expected=f"the object that was opened (version {error})",
            found="another: it changed while it was read",
            do="run the same command again",
        ) from error
    except Absent as error:
        raise SourceError(
            where, expected="a file to read", found="nothing there", do="check the name"
        ) from error
    except Refused as error:
        raise SourceError(
            where, expected="a file to read", found=str(error), do=_REFUSED
        ) from error


@contextmanager
def _told_as_storage_error(where: str) -> Iterator[None]:
    try:
        yield
    except Unreachable as error:
        raise StorageError(
            where, expected="an answer", found=str(error), do="run the same command again later"
        ) from error
    except Absent as error:
        raise StorageError(
            where, expected="a usable file", found="nothing there", do="check the name"
        ) from error
    except Changed as error:
        raise StorageError(
            where,
            expected="the file that was opened",
            found="another: it changed while it was read",
        ) from error
    except StoreError as error:
        raise StorageError(
            where, expected="a usable file", found=str(error), do=_REFUSED
        ) from error

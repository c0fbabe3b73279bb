"""Objects of stores: the backend of `s3://`, `gs://`, `hf://` and `http(s)://` URLs.

Nothing here is a file of this machine. What is read comes by ranges
(`chiasm.pipeline.storage.streams`); what is written is gathered, in memory and then in an unnamed
temporary file, and is put whole: a name never stands for half an object, and a dead run leaves no
temporaries, only uploads in parts that nobody completed, which a sweep ends. Every failure leaves
here as one line: a SourceError when a shard was read, a StorageError in a collection; one that
lasted for all attempts is an UnreachableError or says so. A URL is written into ledgers and logs,
so one that carries a password is refused.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from chiasm.pipeline.errors import SourceError, StorageError, UnreachableError, UsageError
from chiasm.pipeline.storage import object_store as stores
from chiasm.pipeline.storage.backend import Stat
from chiasm.pipeline.storage.object_store import NoRanges, ReadableStore, Store, one_line, store_of
from chiasm.pipeline.storage.retry import (
    NotFound,
    PastEnd,
    Refused,
    RetriesExhausted,
    RetrySettings,
    StoreError,
    VersionChanged,
    retry,
)
from chiasm.pipeline.storage.streams import Seekable, read_ahead
from chiasm.pipeline.storage.uploads import PendingObject

T = TypeVar("T")

_WILD = re.compile(r"[*?\[]")

# Parts of a query that stand for a password: those of AWS's, Google's, Azure's and CloudFront's
# signed URLs, and what others call a token.
_SECRETS = re.compile(
    r"(x-(amz|goog)-(signature|credential|security-token)|signature|sig|policy|key-pair-id"
    r"|awsaccesskeyid|googleaccessid|(access[_-]?|auth[_-]?|id[_-]?)?token|jwt|api[_-]?key|auth"
    r"|(client[_-]?)?secret|pwd|passwd|password)",
    re.IGNORECASE,
)


class ReadFiles:
    """What all of them have in common. A `path` is what the store calls the object."""

    concurrency = 16

    def __init__(self, scheme: str) -> None:
        self.scheme = scheme

    @property
    def store(self) -> ReadableStore:
        return store_of(self.scheme)

    @property
    def retries(self) -> RetrySettings:
        return stores.RETRIES

    def display_name(self, url: str) -> str:
        return url

    def join(self, url: str, name: str) -> str:
        return f"{url.rstrip('/')}/{name}"

    def local(self, url: str) -> Path | None:
        return None

    def path(self, url: str) -> str:
        return url.partition("://")[2]

    def stat(self, url: str) -> Stat:
        with self._reading(url):
            return self._retry(lambda: self.store.head(self.path(url)))

    def stat_or_none(self, url: str) -> Stat | None:
        with self._keeping(url):
            try:
                return self._retry(lambda: self.store.head(self.path(url)))
            except NotFound:
                return None

    def open_stream(self, url: str) -> io.BufferedReader:
        return read_ahead(self.store, self.path(url), self.retries, lambda: self._reading(url))

    def open_random(self, url: str) -> io.RawIOBase:
        return Seekable(self.store, self.path(url), self.retries, lambda: self._keeping(url))

    def read_bytes(self, url: str) -> bytes:
        return self.open_random(url).read()

    def read_range(self, url: str, offset: int, size: int) -> bytes:
        if not size:
            return b""
        with self._reading(url):
            try:
                data = self._retry(lambda: self.store.get(self.path(url), offset, size)).data
            except PastEnd:
                data = b""
            except NoRanges:
                data = self._passed_over(url, offset, size)
        if len(data) < size:
            raise SourceError(
                url,
                expected=f"{size} bytes from byte {offset} on",
                found=f"{len(data)}",
                do="it is shorter than when it was listed: embed it again",
            )
        return data

    def _passed_over(self, url: str, offset: int, size: int) -> bytes:
        with self.open_stream(url) as stream:
            while offset and (some := stream.read(min(offset, 1 << 20))):
                offset -= len(some)
            return b"" if offset else stream.read(size)

    def _retry(self, call: Callable[[], T]) -> T:
        return retry(call, self.retries)

    def _reading(self, url: str) -> AbstractContextManager[None]:
        return _told(url, SourceError, "a file to read")

    def _keeping(self, url: str) -> AbstractContextManager[None]:
        return _told(url, StorageError, "a usable file")


class RemoteFiles(ReadFiles):
    """The backend of a scheme that has buckets, listings and puts."""

    @property
    def store(self) -> Store:
        return store_of(self.scheme)

    def canonical(self, url: str) -> str:
        """As people write it: the key is not escaped, double slashes stay."""
        rest = url.partition("://")[2]
        # In hf:// an @ names a revision, and only a : before the first slash a password.
        password = r"[^/]*:.*@" if self.scheme == "hf" else r"(?!arn:)[^/]*[:@]"
        if re.match(password, rest):
            raise _with_a_password(f"{self.scheme}://***", "docs/operations.md says where they go")
        if not rest.partition("/")[0]:
            raise UsageError(url, expected=f"{self.scheme}://bucket/key", found="no bucket")
        return f"{self.scheme}://{rest}"

    def base_name(self, url: str) -> str:
        return url.rpartition("/")[2]

    def is_folder(self, url: str) -> bool:
        with self._reading(url):
            return self._retry(lambda: self.store.is_folder(self.path(url)))

    def glob(self, pattern: str) -> Sequence[str]:
        from fsspec.utils import glob_translate  # fsspec is imported where such a URL is used

        path = self.path(self.canonical(pattern))
        wild = _WILD.search(path)
        if wild is None:
            return [self.canonical(pattern)]
        try:
            matches = re.compile(glob_translate(path)).fullmatch
        except ValueError as error:
            expected = "a pattern such as folder/**/*.tar"
            raise UsageError(pattern, expected=expected, found=one_line(error)) from error
        fixed = path[: wild.start()]
        deep = "/" in path[wild.start() :]
        with self._reading(pattern):
            folder = fixed if self.scheme == "s3" else fixed.rpartition("/")[0]
            listing = self._retry(lambda: self.store.list(folder, deep=deep))
        # A key that ends in / marks a folder.
        found = (key for key in listing.files if not key.endswith("/") and matches(key))
        return [f"{self.scheme}://{key}" for key in found]

    def folders(self, url: str) -> Sequence[str]:
        with self._keeping(url):
            found = self._retry(lambda: self.store.list(self._folder(url)))
        return sorted(path.rpartition("/")[2] for path in found.folders)

    def list(self, url: str) -> Sequence[str]:
        with self._keeping(url):
            found = self._retry(lambda: self.store.list(self._folder(url)))
        bases = (path.rpartition("/")[2] for path in found.files)
        return sorted(base for base in bases if base)  # a key that ends in / marks a folder

    def create(self, url: str, run_id: str) -> PendingObject:
        return PendingObject(
            self.store, self.path(url), self.retries, lambda: self._keeping(url), url
        )

    def remove(self, url: str) -> None:
        with self._keeping(url):
            try:
                self._retry(lambda: self.store.remove(self.path(url)))
            except NotFound:
                return

    def remove_folder(self, url: str) -> None:
        for base in self.list(url):
            self.remove(self.join(url, base))

    def end_uploads(self, url: str, dead: Callable[[str], bool]) -> Sequence[str]:
        with self._keeping(url):
            return self.store.end_uploads(self._folder(url), dead)

    def _folder(self, url: str) -> str:
        return f"{self.path(url).rstrip('/')}/"


class WebFiles(ReadFiles):
    """`http://` and `https://`: read only, no listings. A query string is part of the URL."""

    def canonical(self, url: str) -> str:
        try:
            parts = urlsplit(url)
        except ValueError as error:
            rest = url.partition("://")[2].partition("?")[0].rpartition("@")[2]
            raise UsageError(
                f"{self.scheme}://{rest}",
                expected=f"{self.scheme}://host/path",
                found=f"no URL ({one_line(error)})",
            ) from None
        plain = f"{self.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        if "@" in parts.netloc:
            raise _with_a_password(plain, "put them into ~/.netrc")
        if any(_SECRETS.fullmatch(name) for name, _ in parse_qsl(parts.query, True)):
            raise _with_a_password(plain, "name the object by s3:// or gs://")
        if not parts.netloc:
            raise UsageError(url, expected=f"{self.scheme}://host/path", found="no host")
        parts = parts._replace(scheme=self.scheme, netloc=parts.netloc.lower(), fragment="")
        # What a request cannot carry is escaped, what is escaped already stays as it is.
        return quote(parts.geturl(), safe="!#$%&'()*+,/:;=?@[]~{}")

    def base_name(self, url: str) -> str:
        return unquote(urlsplit(url).path.rpartition("/")[2])

    def path(self, url: str) -> str:
        return url

    def is_folder(self, url: str) -> bool:
        if urlsplit(url).path.endswith("/"):
            raise self._unlisted(url)
        return False

    def glob(self, pattern: str) -> Sequence[str]:
        if not re.search(r"[*\[]", urlsplit(pattern).path):
            return [self.canonical(pattern)]  # its `?` begins a query
        raise self._unlisted(pattern)

    def list(self, url: str) -> Sequence[str]:
        raise self._unlisted(url)

    def folders(self, url: str) -> Sequence[str]:
        raise self._unlisted(url)

    def create(self, url: str, run_id: str) -> PendingObject:
        raise self._unwritten(url)

    def remove(self, url: str) -> None:
        raise self._unwritten(url)

    def remove_folder(self, url: str) -> None:
        raise self._unwritten(url)

    def end_uploads(self, url: str, dead: Callable[[str], bool]) -> Sequence[str]:
        raise self._unwritten(url)

    def _unlisted(self, url: str) -> UsageError:
        return UsageError(
            url,
            expected="the URL of a file, or a range such as {00000..00012}",
            found=f"a folder or a pattern, and {self.scheme}:// has no listing",
        )

    def _unwritten(self, url: str) -> UsageError:
        return UsageError(
            url,
            expected="a place that can be written",
            found=f"{self.scheme}://",
            do="name a folder or s3://bucket/prefix",
        )


def _with_a_password(shown: str, do: str) -> UsageError:
    expected = "a URL that may be written into ledgers"
    return UsageError(shown, expected=expected, found="credentials in it", do=do)


@contextmanager
def _told(where: str, kind: type[SourceError | StorageError], expected: str) -> Iterator[None]:
    try:
        yield
    except RetriesExhausted as error:
        lasting = UnreachableError if kind is SourceError else kind
        do = "check the network and the endpoint, then run the same command again"
        raise lasting(where, expected="an answer", found=str(error), do=do) from error
    except VersionChanged as error:
        raise kind(
            where,
            expected=f"the object that was opened (version {error})",
            found="another: it changed while it was read",
            do="run the same command again",
        ) from error
    except NotFound as error:
        raise kind(where, expected=expected, found="nothing there", do="check the name") from error
    except Refused as error:
        raise kind(where, expected=expected, found=str(error), do=error.do) from error
    except StoreError as error:
        raise kind(where, expected=expected, found=str(error)) from error

"""The stores behind `s3://`, `gs://`, `hf://` and `http(s)://`, each through fsspec's filesystem.

A store answers one request at a time, once: a `ByteRange` of an object, a listing, a put. What
fails is told as one of the kinds of `chiasm.pipeline.storage.retry`; trying again is left to those
who ask. The choice: one filesystem a process and scheme, without its cache of listings, made when a
URL first needs it; S3 and HTTP are asked for ETags and ranges directly (pipeline/storage/s3.py,
pipeline/storage/http.py), the others through what every fsspec filesystem can do. The cost of that:
they tell no version with a range, so an object that changes under a reader is noticed only at its
end.
"""

from __future__ import annotations

import importlib
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, Protocol

from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.storage.backend import Stat
from chiasm.pipeline.storage.retry import (
    AlreadyExists,
    NotFound,
    PastEnd,
    Refused,
    RetrySettings,
    StoreError,
    TransientError,
)

RETRIES = RetrySettings()
SEND_AT_ONCE = 128 << 20  # bytes that are one put; more goes up in parts
LONGEST_LINE = 200  # characters of what a library says


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Bytes of an object from `start` on. `total`: the object's size; `version`: None where the
    store tells none with a range."""

    start: int
    data: bytes
    total: int
    version: str | None


@dataclass(frozen=True, slots=True)
class Listing:
    """What lies under a prefix: keys of objects, and names of what a delimiter makes folders."""

    files: list[str]
    folders: list[str]


class OpenResponse(Protocol):
    """An answer whose body is still coming: a whole object from its first byte on."""

    size: int
    version: str

    def read(self, size: int) -> bytes: ...
    def close(self) -> None: ...


class NoRanges(StoreError):
    """The server sends whole files only. `size`: -1 if not told. `again`: asks for the whole."""

    def __init__(self, size: int, version: str, again: Callable[[], OpenResponse]) -> None:
        super().__init__("the server sends whole files only")
        self.size, self.version, self.again = size, version, again


class ReadableStore(Protocol):
    """One attempt each; raises the StoreErrors. A `path` is a URL without its scheme (HTTP: the
    URL). `get` with a negative `start` reads the last bytes of the object."""

    def head(self, path: str) -> Stat: ...
    def get(self, path: str, start: int, size: int) -> ByteRange: ...


class Store(ReadableStore, Protocol):
    """What can be listed and written, too. new: a mark of the writer's own: the name must be free,
    or taken by an attempt of this same writer; else Standing. `end_uploads` and what goes up in
    parts (`send`) try again by themselves, request by request."""

    def list(self, folder: str, *, deep: bool = False) -> Listing: ...
    def is_folder(self, path: str) -> bool: ...
    def put(self, path: str, data: bytes, *, new: str = "") -> None: ...
    def send(self, path: str, file: IO[bytes], size: int, *, new: str = "") -> None: ...
    def remove(self, path: str) -> None: ...
    def end_uploads(self, folder: str, dead: Callable[[str], bool]) -> Sequence[str]: ...


class FsspecStore:
    """A store by what every fsspec filesystem can do: `gs://`, `hf://`.

    A new name is put by `mode="create"` (gcsfs: if_generation_match); one that holds the very same
    bytes counts as won. Large objects are put after a look: of two writers of one moment both may
    think that they won."""

    def __init__(self, filesystem: Any) -> None:
        self.fs = filesystem

    def head(self, path: str) -> Stat:
        with _told():
            found = self.fs.info(path)
        if found["type"] != "file":
            raise NotFound(path)
        size = found.get("size")
        return Stat(-1 if size is None else int(size), _version(found))

    def get(self, path: str, start: int, size: int) -> ByteRange:
        total = self.head(path).size
        first = max(0, total + start) if start < 0 else start
        if first >= total:
            raise PastEnd(total)
        wanted = min(size, total - first)
        with _told():
            data = self.fs.cat_file(path, start=first, end=first + wanted)
        if len(data) != wanted:
            raise TransientError(f"{len(data)} bytes of {wanted}")
        return ByteRange(first, data, total, None)

    def list(self, folder: str, *, deep: bool = False) -> Listing:
        try:
            with _told():
                found = self.fs.find(folder, detail=True) if deep else None
                entries = list(found.values()) if found is not None else self.fs.ls(folder, True)
        except NotFound:
            entries = []
        names: dict[str, list[str]] = {"file": [], "directory": []}
        for entry in entries:
            if entry["name"].strip("/") != folder.strip("/"):
                names[entry["type"]].append(entry["name"].lstrip("/"))
        return Listing(sorted(names["file"]), sorted(names["directory"]))

    def is_folder(self, path: str) -> bool:
        with _told():
            return bool(self.fs.isdir(path))

    def put(self, path: str, data: bytes, *, new: str = "") -> None:
        with _told():
            try:
                self.fs.pipe_file(path, data, mode="create" if new else "overwrite")
            except FileExistsError:
                if self.fs.cat_file(path) != data:
                    raise

    def send(self, path: str, file: IO[bytes], size: int, *, new: str = "") -> None:
        with _told():
            if new and self.fs.exists(path):
                raise AlreadyExists(path)
            target = self.fs.open(path, "wb", autocommit=False)
            try:
                file.seek(0)
                while chunk := file.read(16 << 20):
                    target.write(chunk)
                target.close()
                target.commit()
            except BaseException:
                target.discard()
                raise

    def remove(self, path: str) -> None:
        with _told():
            self.fs.rm_file(path)

    def end_uploads(self, folder: str, dead: Callable[[str], bool]) -> Sequence[str]:
        return ()  # what is not committed expires by itself


def silence_loop(loop: Any) -> None:
    """Keep from stderr what asyncio says of the tasks of a broken connection: the request that
    used it fails, and tells why."""
    loop.call_soon_threadsafe(loop.set_exception_handler, lambda loop, context: None)


def _version(found: dict[str, Any]) -> str:
    for name in ("etag", "ETag", "blob_id", "generation", "mtime", "created", "last_modified"):
        if found.get(name):
            return str(found[name]).strip('"')
    return ""


# Packages whose exceptions tell of the network; not all of them are OSErrors.
_NETWORK = {"aiohttp", "gcsfs", "google", "httpx", "httpx2", "requests", "urllib3"}


@contextmanager
def _told() -> Iterator[None]:
    """What fsspec filesystems raise, as StoreErrors."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound(str(error)) from error
    except FileExistsError as error:
        raise AlreadyExists(str(error)) from error
    except (PermissionError, IsADirectoryError, NotImplementedError, ValueError) as error:
        raise Refused(one_line(error)) from error
    except Exception as error:
        package = type(error).__module__.partition(".")[0]
        if not isinstance(error, OSError) and package not in _NETWORK:
            raise
        status = str(getattr(error, "code", getattr(error, "status", "")) or _status_of(error))
        if status == "412":
            raise AlreadyExists(one_line(error)) from error
        if re.fullmatch("4..", status) and status not in ("408", "429"):
            raise Refused(one_line(error)) from error
        raise TransientError(one_line(error)) from error


def _status_of(error: Exception) -> str:
    return str(getattr(getattr(error, "response", None), "status_code", ""))


def one_line(error: BaseException) -> str:
    """An error's text in one line, or its kind where it has none; URLs in it lose the user and the
    query, where passwords and signatures stand."""
    told = " ".join(str(error).split()) or type(error).__name__
    told = re.sub(r"(\w+://)[^/@\s]*@", r"\1", told)
    return re.sub(r"(\w+://[^?\s]*)\?[^\s\"')]*", r"\1", told)[:LONGEST_LINE]


def require_trusted(error: BaseException | None, variable: str) -> None:
    """Refused for a certificate that was not accepted, which no other attempt changes."""
    while error is not None:
        if told := getattr(error, "verify_message", ""):  # ssl.SSLCertVerificationError
            found = f"a certificate that is not trusted ({told})"
            raise Refused(found, f"name the file of its authority in {variable}") from error
        error = error.__cause__ or error.__context__


def byte_range(
    data: bytes, told_range: str | None, start: int, size: int, version: str
) -> ByteRange:
    """Check a range's answer against its `Content-Range`; Passing for one that is not whole."""
    try:
        where, _, total_told = (told_range or "").removeprefix("bytes").strip().partition("/")
        first, last = map(int, where.split("-"))
        total = int(total_told)
    except ValueError:
        raise TransientError(f"a range told as {told_range!r}") from None
    expected = max(0, total + start) if start < 0 else start
    wanted = min(size, total - expected)
    if (first, last) != (expected, expected + wanted - 1) or len(data) != wanted:
        told = f"{len(data)} bytes told as {told_range!r}"
        raise TransientError(f"{told}, where {wanted} from byte {expected} on were asked for")
    return ByteRange(expected, data, total, version)


def _s3() -> Store:
    return _class("chiasm.pipeline.storage.s3", "S3Store")(RETRIES)


def _web() -> Store:
    return _class("chiasm.pipeline.storage.http", "WebStore")(RETRIES)


def _gs() -> Store:
    filesystem = _class("gcsfs", "GCSFileSystem", "pip install 'chiasm[gcs]'")
    return FsspecStore(filesystem(use_listings_cache=False, skip_instance_cache=True))


def _hf() -> Store:
    filesystem = _class("huggingface_hub", "HfFileSystem")
    return FsspecStore(filesystem(use_listings_cache=False, skip_instance_cache=True))


def _class(module: str, name: str, do: str = "") -> Any:
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise UsageError(
            f"package {error.name}", expected="it for such URLs", found="none", do=do
        ) from error


MAKERS: dict[str, Callable[[], Store]] = {
    "s3": _s3,
    "gs": _gs,
    "hf": _hf,
    "http": _web,
    "https": _web,
}
_made: dict[tuple[str, int], Store] = {}
_making = threading.Lock()


def store_of(scheme: str) -> Store:
    """The process's one store of a scheme: a connection does not survive a fork."""
    key = scheme, os.getpid()
    with _making:
        if key not in _made:
            _made[key] = MAKERS[scheme]()
        return _made[key]

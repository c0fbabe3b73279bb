"""A store by what every fsspec filesystem can do: `gs://` and `hf://`.

The cost of the common interface: it reports no version with a range, so an object that changes
while it is read is noticed only at its end.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import IO, Any

from chiasm.pipeline.storage.backend import Stat
from chiasm.pipeline.storage.object_store import ByteRange, Listing
from chiasm.pipeline.storage.store_errors import (
    AlreadyExists,
    NotFound,
    RangeNotSatisfiable,
    Refused,
    TransientError,
    one_line_message,
)

# Packages whose exceptions report network failures; not all of them are OSErrors.
_NETWORK_PACKAGES = {"aiohttp", "gcsfs", "google", "httpx", "httpx2", "requests", "urllib3"}


class FsspecStore:
    """A store over an fsspec filesystem.

    A new name is put by `mode="create"` (gcsfs: if_generation_match); a name that holds the very
    same bytes counts as created by us. Large objects are uploaded after a check of the name: of two
    writers at the same moment both may succeed."""

    def __init__(self, filesystem: Any) -> None:
        self.fs = filesystem

    def head(self, path: str) -> Stat:
        with _translating_errors():
            found = self.fs.info(path)
        if found["type"] != "file":
            raise NotFound(path)
        return _stat(found)

    def get(self, path: str, start: int, size: int) -> ByteRange:
        total = self.head(path).size
        if total < 0:
            raise Refused("an object whose size is not known", "copy it elsewhere")
        first = max(0, total + start) if start < 0 else start
        if first >= total:
            raise RangeNotSatisfiable
        wanted = min(size, total - first)
        with _translating_errors():
            data = self.fs.cat_file(path, start=first, end=first + wanted)
        if len(data) != wanted:
            raise TransientError(f"{len(data)} bytes of {wanted}")
        return ByteRange(first, data, total, None)

    def list(self, folder: str, *, deep: bool = False) -> Listing:
        try:
            with _translating_errors():
                found = self.fs.find(folder, detail=True) if deep else None
                entries = list(found.values()) if found is not None else self.fs.ls(folder, True)
        except NotFound:
            entries = []
        stats: dict[str, Stat] = {}
        folders: list[str] = []
        for entry in entries:
            name = entry["name"].lstrip("/")
            if name.strip("/") == folder.strip("/"):
                continue
            if entry["type"] == "file":
                stats[name] = _stat(entry)
            else:
                folders.append(name)
        return Listing(stats, sorted(folders))

    def is_folder(self, path: str) -> bool:
        with _translating_errors():
            return bool(self.fs.isdir(path))

    def put(self, path: str, data: bytes, *, create_token: str = "") -> None:
        try:
            with _translating_errors():
                self.fs.pipe_file(path, data, mode="create" if create_token else "overwrite")
        except AlreadyExists:
            with _translating_errors():
                found = self.fs.cat_file(path)
            if found != data:
                raise

    def upload(self, path: str, file: IO[bytes], size: int, *, create_token: str = "") -> None:
        with _translating_errors():
            if create_token and self.fs.exists(path):
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
        with _translating_errors():
            self.fs.rm_file(path)

    def abort_uploads(self, folder: str, is_dead: Callable[[str], bool]) -> Sequence[str]:
        return ()  # unfinished uploads expire by themselves


def _stat(info: dict[str, Any]) -> Stat:
    size = info.get("size")
    changed = info.get("mtime") or info.get("last_modified") or info.get("created")
    modified = changed.timestamp() if isinstance(changed, datetime) else None
    return Stat(-1 if size is None else int(size), _version(info), modified)


def _version(info: dict[str, Any]) -> str:
    for name in ("etag", "ETag", "blob_id", "generation", "mtime", "created", "last_modified"):
        if info.get(name):
            return str(info[name]).strip('"')
    return ""


@contextmanager
def _translating_errors() -> Iterator[None]:
    """Raise StoreErrors in place of what fsspec filesystems raise."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound(str(error)) from error
    except FileExistsError as error:
        raise AlreadyExists(str(error)) from error
    except (PermissionError, IsADirectoryError, NotImplementedError, ValueError) as error:
        raise Refused(one_line_message(error)) from error
    except Exception as error:
        package = type(error).__module__.partition(".")[0]
        if not isinstance(error, OSError) and package not in _NETWORK_PACKAGES:
            raise
        status = _status_of(error)
        if status == "412":
            raise AlreadyExists(one_line_message(error)) from error
        if re.fullmatch("4..", status) and status not in ("408", "429"):
            raise Refused(one_line_message(error)) from error
        raise TransientError(one_line_message(error)) from error


def _status_of(error: Exception) -> str:
    """The HTTP status of a library's exception, "" where it has none."""
    response_status = getattr(getattr(error, "response", None), "status_code", "")
    return str(getattr(error, "code", getattr(error, "status", "")) or response_status)

"""The protocol that a URL scheme implements, and the records that it returns.

`Folder` and the functions of `urls.py` call it; `local.py` and `remote.py` implement it;
`schemes.py` chooses one by scheme. Nothing is opened here.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self


@dataclass(frozen=True, slots=True)
class Stat:
    """Size and version of a file.

    size: bytes, -1 where a server does not report it. version: changes with the content (local
    files: modification time in ns; stores: the ETag, else the time of the last change, else "").
    modified: when it was last written, in seconds by the store's own clock, to be compared with
    other files of the same store alone; None where that is not told. Listings tell it."""

    size: int
    version: str
    modified: float | None = field(default=None, compare=False)


class Stream(io.BufferedReader):
    """A file that is read from front to back.

    Where it is `seekable`, seeking forward leaves out bytes without reading them."""

    def stat(self) -> Stat | None:
        """Size (-1 where not reported) and version of what is read: of a local file as it is now,
        of an object as it was opened, after which it cannot change unnoticed. None: unknown."""
        return None

    def second_reader(self) -> Stream | None:
        """Another reader of the same open file, at its beginning, for small pieces here and there;
        None where each would be a request. To be closed before this one."""
        return None


class PendingFile(Protocol):
    """A file being written. `commit()` gives it its name; leaving the `with` block without a commit
    removes it. `commit_new()` does not replace a file: it returns False where the name is taken."""

    @property
    def closed(self) -> bool: ...
    def write(self, data: Any, /) -> int: ...
    def tell(self) -> int: ...
    def flush(self) -> None: ...
    def commit(self) -> None: ...
    def commit_new(self) -> bool: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
        /,
    ) -> None: ...


class Backend(Protocol):
    """What `Folder` and `urls.py` need of a URL scheme; every `url` is canonical.

    concurrency: how many small requests are worth making at the same time (1 where a request does
    not wait for a network). `stat`, `open_stream`, `read_range` and `glob` raise SourceError, the
    methods of a collection's files StorageError. `open_seekable` returns a file with random access;
    `abort_uploads` aborts unfinished multipart uploads of objects for whose URL `is_dead` holds."""

    concurrency: int

    def canonical(self, url: str) -> str: ...
    def display_name(self, url: str) -> str: ...
    def base_name(self, url: str) -> str: ...
    def join(self, url: str, name: str) -> str: ...
    def local(self, url: str) -> Path | None: ...
    def stat(self, url: str) -> Stat: ...
    def is_folder(self, url: str) -> bool: ...
    def open_stream(self, url: str) -> Stream: ...
    def open_seekable(self, url: str) -> Any: ...
    def read_range(self, url: str, offset: int, size: int) -> bytes: ...
    def glob(self, pattern: str) -> Sequence[str]: ...
    def stat_or_none(self, url: str) -> Stat | None: ...
    def folders(self, url: str) -> Sequence[str]: ...
    def list(self, url: str) -> Sequence[str]: ...
    def list_stats(self, url: str) -> Mapping[str, Stat]: ...
    def read_bytes(self, url: str) -> bytes: ...
    def create(self, url: str, run_id: str) -> PendingFile: ...
    def remove(self, url: str) -> None: ...
    def remove_folder(self, url: str, is_ours: Callable[[str], bool]) -> None: ...
    def abort_uploads(self, url: str, is_dead: Callable[[str], bool]) -> Sequence[str]: ...

"""The one door to bytes that lie somewhere: paths and URLs in; streams, ranges, whole files out.

Shards are read by URL (`stat`, `open_stream`, `read_range`, `find`). A collection is a `Folder`, in
which a file gets its final name only once it is whole: written under a temporary name that carries
the run's id, flushed to the disk, renamed; on object stores it is put whole. The choice: one
backend per URL scheme in a dict, and nothing beyond what an object store can do (whole puts,
ranges, flat listings). Its cost: no appending, and two flushes to the disk for each file written.
What goes wrong with a shard is a SourceError, what goes wrong in a folder a StorageError, one line
each.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from chiasm.pipeline.errors import StorageError, UsageError
from chiasm.pipeline.storage.backend import Backend, PendingFile, Stat
from chiasm.pipeline.storage.local import LocalFiles, is_temporary, run_of_temporary, temporary_of
from chiasm.pipeline.storage.remote import RemoteFiles, WebFiles

__all__ = [
    "BACKENDS",
    "Backend",
    "Folder",
    "PendingFile",
    "Stat",
    "base_name",
    "canonical_url",
    "each",
    "find",
    "is_far",
    "is_folder",
    "is_temporary",
    "open_stream",
    "read_range",
    "run_of_temporary",
    "shown",
    "stat",
    "temporary_of",
]

A = TypeVar("A")
B = TypeVar("B")

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)://")


def canonical_url(path_or_url: str) -> str:
    """One name for one place: `a.tar` -> `file:///abs/real/a.tar`, symbolic links resolved.

    Raises UsageError for a scheme without a backend."""
    return _backend(path_or_url).canonical(path_or_url)


def shown(url: str) -> str:
    """What a person calls the place: the path of a local file, else the URL without its
    password."""
    return _backend(url).shown(url)


def base_name(url: str) -> str:
    """The file's own name, unescaped, without the query of an HTTP URL."""
    return _backend(url).base(url)


def stat(url: str) -> Stat:
    """Size and version of a file; SourceError when it is missing or no file."""
    return _backend(url).stat(url)


def is_folder(url: str) -> bool:
    """Whether `url` is a folder that can be listed."""
    return _backend(url).is_folder(url)


def is_far(url: str) -> bool:
    """Whether each look at `url` is a request."""
    return _backend(url).at_once > 1


def open_stream(url: str) -> io.BufferedReader:
    """A file for reading from front to back; SourceError when it cannot be opened."""
    return _backend(url).open_stream(url)


def read_range(url: str, offset: int, size: int) -> bytes:
    """Exactly `size` bytes from `offset` on; SourceError when the file ends before."""
    return _backend(url).read_range(url, offset, size)


def find(pattern: str) -> list[str]:
    """Canonical URLs of what matches a glob (`*`, `?`, `[...]`, `**`), sorted by path."""
    return list(_backend(pattern).find(pattern))


def each(call: Callable[[str], B], urls: Sequence[str]) -> list[B]:
    """`call` of each URL, in their order; several at once where a store takes its time."""
    at_once = max((_backend(url).at_once for url in urls), default=1)
    if at_once == 1:
        return [call(url) for url in urls]
    with ThreadPoolExecutor(at_once, "chiasm-each") as asking:
        return list(asking.map(call, urls))


class Folder:
    """A collection's place. A `name` is relative to its root, as in `ledger/a.json`."""

    def __init__(self, root: str) -> None:
        self.url = canonical_url(root)
        self._backend = _backend(self.url)

    def __repr__(self) -> str:
        return f"Folder({self.url!r})"

    @property
    def local(self) -> Path | None:
        """The root as a path of this machine, None where it is not one."""
        return self._backend.local(self.url)

    def path(self, name: str) -> Path:
        """A file as a local path, for memory-mapping; StorageError where it cannot be one."""
        path = self._backend.local(self.url_of(name))
        if path is None:
            raise StorageError(
                self.url_of(name), expected="a file of this machine", do="copy it here first"
            )
        return path

    def exists(self, name: str) -> bool:
        return self.stat(name) is not None

    def folders(self, prefix: str) -> list[str]:
        """Sorted names of the folders right under `prefix`."""
        return [f"{prefix}/{base}" for base in self._backend.folders(self.url_of(prefix))]

    def list(self, prefix: str = "") -> list[str]:
        """Sorted names of the files right under `prefix`, temporaries included."""
        if not prefix:
            return [*self._backend.list(self.url)]
        return [f"{prefix}/{base}" for base in self._backend.list(self.url_of(prefix))]

    def stat(self, name: str) -> Stat | None:
        """Size and version, None where there is no such file."""
        return self._backend.look(self.url_of(name))

    def each(self, call: Callable[[A], B], names: Iterable[A]) -> Iterator[B]:
        """`call` of each name, in their order; several at once where a request takes its time."""
        if self._backend.at_once == 1:
            yield from map(call, names)
            return
        with ThreadPoolExecutor(self._backend.at_once, "chiasm-each") as asking:
            yield from asking.map(call, names)

    def open_stream(self, name: str) -> io.BufferedReader:
        """A file for reading from front to back; SourceError when it cannot be opened."""
        return self._backend.open_stream(self.url_of(name))

    def open_random(self, name: str) -> Any:
        """A file for reading here and there: memory-mapped, or by ranges."""
        return self._backend.open_random(self.url_of(name))

    def read_bytes(self, name: str) -> bytes:
        return self._backend.read_bytes(self.url_of(name))

    def write_whole(self, name: str, data: bytes, run_id: str = "") -> None:
        """Put `data` under `name`. Readers see all of the old content or all of the new."""
        with self.create(name, run_id) as file:
            file.write(data)
            file.commit()

    def write_new(self, name: str, data: bytes, run_id: str) -> bool:
        """Put `data` under `name` unless something stands there; of several at once, one
        succeeds."""
        with self.create(name, run_id) as file:
            file.write(data)
            return file.commit_new()

    def create(self, name: str, run_id: str) -> PendingFile:
        """A file to write in a `with`: `commit()` gives it its name, else it leaves no trace."""
        return self._backend.create(self.url_of(name), run_id)

    def remove(self, name: str) -> None:
        """Remove a file; one that is gone already is no error, since two runs may sweep at once."""
        self._backend.remove(self.url_of(name))

    def remove_folder(self, name: str) -> None:
        """Remove a folder of files; what is gone already is no error."""
        self._backend.remove_folder(self.url_of(name))

    def end_uploads(self, dead: Callable[[str], bool]) -> Sequence[str]:
        """Abort the uploads into this folder, at any depth, that were begun and not completed, of
        objects whose URL is `dead`; returns those. Nobody sees them, but they are paid for."""
        return self._backend.end_uploads(self.url, dead)

    def url_of(self, name: str) -> str:
        if not name or name.startswith("/") or ".." in name.split("/"):
            raise ValueError(f"expected a name inside the folder, found {name!r}")
        return self._backend.join(self.url, name)


BACKENDS: dict[str, Backend] = {
    "file": LocalFiles(),
    "s3": RemoteFiles("s3"),
    "gs": RemoteFiles("gs"),
    "hf": RemoteFiles("hf"),
    "http": WebFiles("http"),
    "https": WebFiles("https"),
}


def _backend(path_or_url: str) -> Backend:
    found = _SCHEME.match(path_or_url)
    scheme = found[1].lower() if found else "file"
    if scheme not in BACKENDS:
        valid = ", ".join(f"{name}://" for name in BACKENDS)
        # The rest may hold a password, at a place that only those who know the scheme can tell.
        raise UsageError(f"{scheme}://***", expected=f"a path or one of {valid}", found="another")
    return BACKENDS[scheme]

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
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from chiasm.pipeline.errors import StorageError
from chiasm.pipeline.storage.backend import PendingFile, Stat
from chiasm.pipeline.storage.schemes import backend_of
from chiasm.pipeline.storage.urls import canonical_url

A = TypeVar("A")
B = TypeVar("B")


class Folder:
    """A collection's place. A `name` is relative to its root, as in `ledger/a.json`."""

    def __init__(self, root: str) -> None:
        self.url = canonical_url(root)
        self._backend = backend_of(self.url)

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
        return self._backend.stat_or_none(self.url_of(name))

    def map_concurrent(self, call: Callable[[A], B], names: Iterable[A]) -> Iterator[B]:
        """`call` of each name, in their order; several at once where a request takes its time."""
        if self._backend.concurrency == 1:
            yield from map(call, names)
            return
        with ThreadPoolExecutor(self._backend.concurrency, "chiasm-each") as asking:
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

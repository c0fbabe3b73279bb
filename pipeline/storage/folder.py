"""`Folder`: the files of a collection, on this machine or in an object store.

A file gets its final name only once it is whole. On this machine it is written under a temporary
name that carries the run's id, flushed to the disk and renamed; in an object store it is uploaded
whole. Only what an object store can do is offered: whole puts, ranges, flat listings. The cost: no
appending, and two fsyncs for each file written. Failures are one line each: SourceError for a shard
that is read, StorageError for a file of the folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from chiasm.pipeline.errors import StorageError
from chiasm.pipeline.storage.backend import Backend, PendingFile, Stat, Stream
from chiasm.pipeline.storage.schemes import backend_of

A = TypeVar("A")
B = TypeVar("B")


class Folder:
    """A folder by path or URL. A `name` is relative to it, such as `ledger/a.json`.

    Methods raise StorageError where the folder or a file of it cannot be used, and ValueError for a
    name that leads out of it."""

    def __init__(self, root: str, backend: Backend | None = None) -> None:
        """backend: in place of that of the URL's scheme."""
        self._backend = backend_of(root) if backend is None else backend
        self.url = self._backend.canonical(root)

    def __repr__(self) -> str:
        return f"Folder({self.url!r})"

    @property
    def local(self) -> Path | None:
        """The root as a path of this machine, None in a store."""
        return self._backend.local(self.url)

    def path(self, name: str) -> Path:
        """A file as a local path, for memory-mapping; StorageError in a store."""
        path = self._backend.local(self.url_of(name))
        if path is None:
            raise StorageError(
                self.url_of(name), expected="a file of this machine", do="copy it here first"
            )
        return path

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return self.stat(name) is not None

    def folders(self, prefix: str) -> list[str]:
        """Sorted names of the folders directly under `prefix`."""
        return [f"{prefix}/{base}" for base in self._backend.folders(self.url_of(prefix))]

    def list(self, prefix: str = "") -> list[str]:
        """Sorted names of the files directly under `prefix`, temporaries included."""
        if not prefix:
            return [*self._backend.list(self.url)]
        return [f"{prefix}/{base}" for base in self._backend.list(self.url_of(prefix))]

    def list_stats(self, prefix: str) -> dict[str, Stat]:
        """Size and version of every file directly under `prefix`, temporaries included; in a store
        by its listing alone."""
        found = self._backend.list_stats(self.url_of(prefix))
        return {f"{prefix}/{base}": stat for base, stat in found.items()}

    def stat(self, name: str) -> Stat | None:
        """Size and version, None where there is no such file."""
        return self._backend.stat_or_none(self.url_of(name))

    def map_concurrent(
        self, call: Callable[[A], B], names: Iterable[A], at_once: int = 0
    ) -> Iterator[B]:
        """`call(name)` for every name, in order; in a store several calls run at the same time.
        at_once: how many, where it is more than the backend's number of small requests."""
        if self._backend.concurrency == 1:
            yield from map(call, names)
            return
        with ThreadPoolExecutor(max(self._backend.concurrency, at_once), "chiasm-map") as pool:
            yield from pool.map(call, names)

    def open_stream(self, name: str) -> Stream:
        """A file for reading from front to back; SourceError when it cannot be opened."""
        return self._backend.open_stream(self.url_of(name))

    def open_seekable(self, name: str) -> Any:
        """A file with random access, as pyarrow takes it: memory-mapped, or read by ranges."""
        return self._backend.open_seekable(self.url_of(name))

    def read_bytes(self, name: str) -> bytes:
        """A whole file."""
        return self._backend.read_bytes(self.url_of(name))

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """`size` bytes from byte `offset` on; SourceError where there are fewer."""
        return self._backend.read_range(self.url_of(name), offset, size)

    def write_whole(self, name: str, data: bytes, run_id: str = "") -> None:
        """Write a file atomically: readers see all of the old content or all of the new."""
        with self.create(name, run_id) as file:
            file.write(data)
            file.commit()

    def write_new(self, name: str, data: bytes, run_id: str) -> bool:
        """Write a file atomically unless the name is taken; returns whether it was written. Of
        several writers at the same time one succeeds."""
        with self.create(name, run_id) as file:
            file.write(data)
            return file.commit_new()

    def create(self, name: str, run_id: str) -> PendingFile:
        """A file to write in a `with` block: `commit()` names it, else nothing of it remains."""
        return self._backend.create(self.url_of(name), run_id)

    def remove(self, name: str) -> None:
        """Remove a file; a missing one is no error, since two runs may sweep at the same time.
        StorageError where a folder of its path is a symbolic link by now."""
        self._backend.remove(self.url_of(name))

    def remove_folder(self, name: str, is_ours: Callable[[str], bool]) -> None:
        """Remove the files of a folder for whose names `is_ours` holds, and the folder if that
        leaves it empty; a missing one is no error. Nothing is removed through a symbolic link."""
        self._backend.remove_folder(self.url_of(name), is_ours)

    def abort_uploads(self, is_dead: Callable[[str], bool]) -> Sequence[str]:
        """Abort unfinished multipart uploads into this folder, at any depth, of objects for whose
        URL `is_dead` holds; returns those URLs. Listings do not show such uploads, bills do."""
        return self._backend.abort_uploads(self.url, is_dead)

    def url_of(self, name: str) -> str:
        """The canonical URL of a file; ValueError for a name that leads out of the folder."""
        if not name or name.startswith("/") or ".." in name.split("/"):
            raise ValueError(f"expected a name inside the folder, found {name!r}")
        return self._backend.join(self.url, name)

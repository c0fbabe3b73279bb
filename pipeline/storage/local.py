"""Files of this machine: the backend of `file://` URLs and of plain paths.

A file is written under a temporary name that carries the ids of its run and of its attempt, in the
target's folder, flushed to the disk and renamed: a final name never belongs to half a file, and a
sweep knows which run left a temporary. Nothing is removed through a symbolic link. OSErrors become
one line: a SourceError for a shard, a StorageError for a file of a collection.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import io
import os
import secrets
import stat as modes
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from urllib.parse import quote_from_bytes, unquote, unquote_to_bytes

import pyarrow as pa

from chiasm.pipeline.errors import SourceError, StorageError, UsageError
from chiasm.pipeline.storage.backend import Stat
from chiasm.pipeline.storage.disk import Disk, Entry
from chiasm.pipeline.storage.disk_errors import removal_errors, source_errors, storage_errors
from chiasm.pipeline.storage.local_stream import LocalStream
from chiasm.pipeline.storage.temporaries import temporary_of

# Each read of the file releases the GIL, which other decode threads then take: so few large reads.
# The cost is a copy in memory.
STREAM_BUFFER = 1 << 20


class PendingLocalFile(io.BufferedWriter):
    """A PendingFile on this machine, under its temporary name until its commit.

    Every attempt has a name of its own: none can name the half-written file of another. What
    belongs to no run is locked, so that others see whether its writer lives."""

    def __init__(self, disk: Disk, target: Path, run_id: str) -> None:
        self.target, self._disk = target, disk
        self._named = False
        self.temporary = temporary_of(str(target), run_id, secrets.token_hex(4))
        with storage_errors(target):
            _make_folders(disk, target.parent)
            self._file = disk.create(self.temporary)
        super().__init__(self._file, 1 << 20)
        if not run_id:  # see abandoned.py
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def write(self, data) -> int:
        with storage_errors(self.target):
            return super().write(data)

    def flush(self) -> None:
        with storage_errors(self.target):
            super().flush()

    def commit(self) -> None:
        """Flush file and folder to the disk, close the file, give it its final name."""
        self.flush()
        with storage_errors(self.target):
            self._disk.flush_file(self._file)
            self.close()
            self._rename()
            self._disk.flush_folder(str(self.target.parent))

    def _rename(self) -> None:
        self._disk.rename(self.temporary, str(self.target))
        self._named = True

    def commit_new(self) -> bool:
        """Like `commit`, unless the name is taken; returns whether the file got the name."""
        self.flush()
        with storage_errors(self.target):
            self._disk.flush_file(self._file)
            named = self._name_if_free()
            self._disk.flush_folder(str(self.target.parent))
        return named

    def _name_if_free(self) -> bool:
        try:
            self._disk.link(self.temporary, str(self.target))  # in one step, or not at all
            return True
        except FileExistsError:
            # A network file system whose answer was lost repeats the call: then the name is ours.
            return os.path.samestat(
                self._disk.stat(self.temporary), self._disk.stat(str(self.target))
            )
        except OSError:
            # A disk without hard links (FAT, many network and FUSE mounts, each with an errno of
            # its own) cannot name a file only if the name is free. A check before the rename is not
            # safe against another run at the same moment, but it is against a kill, and an empty
            # file under the name would not be.
            if _exists(self._disk, self.target):
                return False
            self.close()
            self._rename()
            return True

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        if not self._named:
            with contextlib.suppress(OSError):
                self._disk.discard(self.temporary)
        # Closing flushes again, which fails again where the disk is full.
        with contextlib.suppress(StorageError):
            self.close()


class LocalFiles:
    """The backend of `file://` URLs and of plain paths. disk: the door to the file system."""

    concurrency = 1

    def __init__(self, disk: Disk | None = None) -> None:
        self.disk = disk or Disk()

    def canonical(self, url: str) -> str:
        path = _path_of(url)
        if "\0" in path:
            raise UsageError(repr(url), expected="a path", found="a null byte in it")
        path = os.path.realpath(os.path.expanduser(path))
        return "file://" + quote_from_bytes(os.fsencode(path))

    def display_name(self, url: str) -> str:
        return str(self.local(url))

    def base_name(self, url: str) -> str:
        return unquote(url.rpartition("/")[2])

    def join(self, url: str, name: str) -> str:
        return f"{url.rstrip('/')}/{quote_from_bytes(os.fsencode(name))}"

    def local(self, url: str) -> Path:
        return Path(_path_of(url))

    def stat(self, url: str) -> Stat:
        with source_errors(_path_of(url)):
            found = os.stat(_path_of(url))
            if not modes.S_ISREG(found.st_mode):
                kind = "a folder" if modes.S_ISDIR(found.st_mode) else "a device or a pipe"
                raise SourceError(_path_of(url), expected="a file", found=kind)
        return Stat(found.st_size, str(found.st_mtime_ns), found.st_mtime)

    def is_folder(self, url: str) -> bool:
        return os.path.isdir(_path_of(url))

    def open_stream(self, url: str) -> LocalStream:
        with source_errors(_path_of(url)):
            return LocalStream(_open_regular(_path_of(url)), STREAM_BUFFER)

    def read_range(self, url: str, offset: int, size: int) -> bytes:
        with source_errors(_path_of(url)), io.BufferedReader(_open_regular(_path_of(url))) as file:
            found = max(0, os.fstat(file.fileno()).st_size - offset)
            if found >= size:  # else the size is no reason to allocate as much
                file.seek(offset)
                data = file.read(size)
                if len(data) == size:
                    return data
                found = len(data)
        raise SourceError(
            _path_of(url),
            expected=f"{size} bytes from byte {offset} on",
            found=f"{found}",
            do="it is shorter than when it was listed: embed it again",
        )

    def open_seekable(self, url: str) -> pa.NativeFile:
        with storage_errors(_path_of(url)):
            return self.disk.map(_path_of(url))

    def glob(self, pattern: str) -> list[str]:
        path = os.path.expanduser(_path_of(pattern))
        return [self.canonical(found) for found in sorted(glob.glob(path, recursive=True))]

    def stat_or_none(self, url: str) -> Stat | None:
        with storage_errors(_path_of(url)):
            try:
                found = self.disk.stat(_path_of(url))
            except (FileNotFoundError, NotADirectoryError):
                return None
        return Stat(found.st_size, str(found.st_mtime_ns), found.st_mtime)

    def _entries(self, url: str) -> list[Entry]:
        with storage_errors(_path_of(url)):
            try:
                return self.disk.entries(_path_of(url))
            except FileNotFoundError:
                return []

    def folders(self, url: str) -> list[str]:
        return sorted(entry.name for entry in self._entries(url) if entry.is_folder)

    def list(self, url: str) -> list[str]:
        return sorted(entry.name for entry in self._entries(url) if entry.is_file)

    def list_stats(self, url: str) -> dict[str, Stat]:
        folder, found = _path_of(url), dict[str, Stat]()
        with storage_errors(folder):
            for base in self.list(url):
                with contextlib.suppress(FileNotFoundError):  # removed since
                    stat = self.disk.stat(os.path.join(folder, base))
                    found[base] = Stat(stat.st_size, str(stat.st_mtime_ns), stat.st_mtime)
        return found

    def read_bytes(self, url: str) -> bytes:
        with storage_errors(_path_of(url)):
            return self.disk.read(_path_of(url))

    def create(self, url: str, run_id: str) -> PendingLocalFile:
        return PendingLocalFile(self.disk, Path(_path_of(url)), run_id)

    def remove(self, url: str) -> None:
        path = _path_of(url)
        with removal_errors(path), contextlib.suppress(FileNotFoundError):
            self.disk.remove(path)

    def remove_folder(self, url: str, is_ours: Callable[[str], bool]) -> None:
        path = _path_of(url)
        with removal_errors(path), contextlib.suppress(FileNotFoundError):
            entries = self.disk.entries(path)
            for entry in entries:
                if is_ours(entry.name):
                    self.remove(self.join(url, entry.name))
            if all(is_ours(entry.name) for entry in entries):
                self.disk.remove_folder(path)

    def abort_uploads(self, url: str, is_dead: Callable[[str], bool]) -> Sequence[str]:
        return ()  # a file that is not committed is a temporary


def _open_regular(path: str) -> io.FileIO:
    """A regular file for reading. A pipe or a device is refused: it may wait for ever, or have no
    end. The path may come from a catalog that others wrote."""
    # Without O_NONBLOCK a pipe would already wait here.
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        mode = os.fstat(handle).st_mode
        if modes.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not modes.S_ISREG(mode):
            raise SourceError(path, expected="a file to read", found="a device or a pipe")
        return io.FileIO(handle)
    except BaseException:
        os.close(handle)
        raise


def _path_of(path_or_url: str) -> str:
    """`file:///a%20b` -> `/a b`; a path stays as it is. UsageError for another host's file."""
    if not path_or_url.lower().startswith("file://"):
        return path_or_url
    host, slash, path = path_or_url[len("file://") :].partition("/")
    if host not in ("", "localhost") or not slash:
        raise UsageError(path_or_url, expected="file:///path", found=f"the host {host!r}")
    return os.fsdecode(unquote_to_bytes(os.fsencode(slash + path)))


def _exists(disk: Disk, path: Path) -> bool:
    try:
        disk.stat(str(path))
    except FileNotFoundError:
        return False
    return True


def _make_folders(disk: Disk, folder: Path) -> None:
    """Make a folder and its missing parents, each flushed to the disk in its own parent."""
    try:
        if modes.S_ISDIR(disk.stat(str(folder)).st_mode):
            return
        raise NotADirectoryError(errno.ENOTDIR, "a file where a folder should be", str(folder))
    except FileNotFoundError:
        pass
    _make_folders(disk, folder.parent)
    with contextlib.suppress(FileExistsError):  # another run made it
        disk.make_folder(str(folder))
    disk.flush_folder(str(folder.parent))

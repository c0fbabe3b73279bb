"""Files of this machine: the backend of `file://` URLs and of plain paths.

A file is written under a temporary name that carries the run's id, in the target's folder, flushed
to the disk and renamed: a final name never belongs to half a file, and a sweep knows which run left
a temporary. OSErrors become one line: a SourceError for a shard, a StorageError for a file of a
collection.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import io
import os
import re
import stat as modes
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from urllib.parse import quote_from_bytes, unquote, unquote_to_bytes

import pyarrow as pa

from chiasm.pipeline.errors import SourceError, StorageError, UsageError
from chiasm.pipeline.storage.backend import Stat

# Each read of the file releases the GIL, which other decode threads then take: so few large reads.
# The cost is a copy in memory.
STREAM_BUFFER = 1 << 20

_TEMPORARY = re.compile(r"^\..+\.(?P<run>[^./]*)\.tmp$")


def temporary_of(name: str, run_id: str) -> str:
    """The name under which a run writes `name`, such as `ledger/.a.json.<run id>.tmp`; ValueError
    for a run id with dots or slashes."""
    if not re.fullmatch(r"[^./]*", run_id):
        raise ValueError(f"expected a run id without dots and slashes, found {run_id!r}")
    folder, slash, base = name.rpartition("/")
    return f"{folder}{slash}.{base}.{run_id}.tmp"


def is_temporary(name: str) -> bool:
    """Whether `name` is one that `temporary_of` returns."""
    return _TEMPORARY.match(name.rpartition("/")[2]) is not None


def run_of_temporary(name: str) -> str:
    """The id of the run that wrote the temporary `name`; ValueError for other names."""
    found = _TEMPORARY.match(name.rpartition("/")[2])
    if found is None:
        raise ValueError(f"expected the name of a temporary, found {name!r}")
    return found["run"]


class PendingLocalFile(io.BufferedWriter):
    """A PendingFile on this machine, under its temporary name until its commit."""

    def __init__(self, target: Path, run_id: str) -> None:
        self.target = target
        self.temporary = Path(temporary_of(str(target), run_id))
        with _storage_errors(target):
            _make_folders(target.parent)
            super().__init__(io.FileIO(self.temporary, "xb", opener=_create_file), 1 << 20)
            self._inode = os.fstat(self.fileno()).st_ino

    def write(self, data) -> int:
        with _storage_errors(self.target):
            return super().write(data)

    def flush(self) -> None:
        with _storage_errors(self.target):
            super().flush()

    def commit(self) -> None:
        """Flush file and folder to the disk, close the file, give it its final name."""
        self.flush()
        with _storage_errors(self.target):
            os.fsync(self.fileno())
            if os.stat(self.temporary).st_ino != self._inode:
                # Another attempt of this run took the name over, and its file is half-written.
                raise FileExistsError(errno.EEXIST, "taken over by another attempt", self.temporary)
            self.close()
            os.replace(self.temporary, self.target)
            _fsync_folder(self.target.parent)

    def commit_new(self) -> bool:
        """Like `commit`, unless the name is taken; returns whether the file got the name."""
        self.flush()
        with _storage_errors(self.target):
            os.fsync(self.fileno())
            try:
                os.link(self.temporary, self.target)  # names a whole file in one step, or fails
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                # A disk without hard links (FAT, some mounts) cannot name a file only if the name
                # is free. A check before the rename is not safe against another run at the same
                # moment, but it is against a kill, and an empty file under the name would not be.
                if self.target.exists():
                    return False
                self.close()
                os.replace(self.temporary, self.target)
            _fsync_folder(self.target.parent)
        return True

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        if self.closed:
            return
        with contextlib.suppress(OSError):
            if os.stat(self.temporary).st_ino == self._inode:
                os.unlink(self.temporary)
        # Closing flushes again, which fails again where the disk is full.
        with contextlib.suppress(StorageError):
            self.close()


class LocalFiles:
    """The backend of `file://` URLs and of plain paths."""

    concurrency = 1

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
        with _source_errors(url):
            found = os.stat(_path_of(url))
            if not modes.S_ISREG(found.st_mode):
                kind = "a folder" if modes.S_ISDIR(found.st_mode) else "a device or a pipe"
                raise SourceError(_path_of(url), expected="a file", found=kind)
        return Stat(found.st_size, str(found.st_mtime_ns))

    def is_folder(self, url: str) -> bool:
        return os.path.isdir(_path_of(url))

    def open_stream(self, url: str) -> io.BufferedReader:
        with _source_errors(url):
            return io.BufferedReader(io.FileIO(_path_of(url)), STREAM_BUFFER)

    def read_range(self, url: str, offset: int, size: int) -> bytes:
        with _source_errors(url), open(_path_of(url), "rb") as file:
            file.seek(offset)
            data = file.read(size)
        if len(data) < size:
            raise SourceError(
                _path_of(url),
                expected=f"{size} bytes from byte {offset} on",
                found=f"{len(data)}",
                do="it is shorter than when it was listed: embed it again",
            )
        return data

    def open_seekable(self, url: str) -> pa.NativeFile:
        with _storage_errors(_path_of(url)):
            return pa.memory_map(_path_of(url))

    def glob(self, pattern: str) -> list[str]:
        path = os.path.expanduser(_path_of(pattern))
        return [self.canonical(found) for found in sorted(glob.glob(path, recursive=True))]

    def stat_or_none(self, url: str) -> Stat | None:
        with _storage_errors(_path_of(url)):
            try:
                found = os.stat(_path_of(url))
            except (FileNotFoundError, NotADirectoryError):
                return None
        return Stat(found.st_size, str(found.st_mtime_ns))

    def folders(self, url: str) -> list[str]:
        with _storage_errors(_path_of(url)):
            try:
                with os.scandir(_path_of(url)) as entries:
                    return sorted(entry.name for entry in entries if entry.is_dir())
            except FileNotFoundError:
                return []

    def list(self, url: str) -> list[str]:
        with _storage_errors(_path_of(url)):
            try:
                with os.scandir(_path_of(url)) as entries:
                    return sorted(entry.name for entry in entries if entry.is_file())
            except FileNotFoundError:
                return []

    def read_bytes(self, url: str) -> bytes:
        with _storage_errors(_path_of(url)):
            return Path(_path_of(url)).read_bytes()

    def create(self, url: str, run_id: str) -> PendingLocalFile:
        return PendingLocalFile(Path(_path_of(url)), run_id)

    def remove(self, url: str) -> None:
        with _storage_errors(_path_of(url)), contextlib.suppress(FileNotFoundError):
            os.unlink(_path_of(url))

    def remove_folder(self, url: str) -> None:
        for base in self.list(url):
            self.remove(self.join(url, base))
        with _storage_errors(_path_of(url)), contextlib.suppress(FileNotFoundError):
            os.rmdir(_path_of(url))

    def abort_uploads(self, url: str, is_dead: Callable[[str], bool]) -> Sequence[str]:
        return ()  # a file that is not committed is a temporary


def _path_of(path_or_url: str) -> str:
    """`file:///a%20b` -> `/a b`; a path stays as it is. UsageError for another host's file."""
    if not path_or_url.lower().startswith("file://"):
        return path_or_url
    host, slash, path = path_or_url[len("file://") :].partition("/")
    if host not in ("", "localhost") or not slash:
        raise UsageError(path_or_url, expected="file:///path", found=f"the host {host!r}")
    return os.fsdecode(unquote_to_bytes(slash + path))


def _create_file(path: str, flags: int) -> int:
    """Open a new file, in place of one that a dead attempt of the same run may have left."""
    try:
        return os.open(path, flags | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        os.unlink(path)
        return os.open(path, flags | os.O_CLOEXEC, 0o666)


def _make_folders(folder: Path) -> None:
    """Make a folder and its missing parents, each flushed to the disk in its own parent."""
    if folder.is_dir():
        return
    _make_folders(folder.parent)
    try:
        folder.mkdir(exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, "a file where a folder should be") from None
    _fsync_folder(folder.parent)


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems cannot flush a folder.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EMLINK}

# errno -> (what was found, what to do)
_MESSAGES = {
    errno.ENOENT: ("nothing there", "check the path"),
    errno.EACCES: ("no permission", "check its owner and mode"),
    errno.EISDIR: ("a folder", "name a file"),
    errno.ENOTDIR: ("a file where a folder should be", "check the path"),
    errno.EEXIST: ("another file in its place", "let one run finish before the next"),
    errno.EROFS: ("a read-only file system", "choose another target"),
    errno.ENOSPC: ("no space left on the disk", "free some and run the same command again"),
    errno.EDQUOT: ("the disk quota used up", "free some and run the same command again"),
    errno.EFBIG: ("the limit of a file's size reached", "raise the limit (ulimit -f)"),
    errno.ENAMETOOLONG: ("a name too long for the file system", "choose a shorter one"),
}


@contextlib.contextmanager
def _source_errors(url: str) -> Iterator[None]:
    """Raise SourceError in place of OSError."""
    try:
        yield
    except OSError as error:
        found, do = _MESSAGES.get(error.errno or 0, (error.strerror or str(error), ""))
        raise SourceError(_path_of(url), expected="a file to read", found=found, do=do) from error


@contextlib.contextmanager
def _storage_errors(path: Path | str) -> Iterator[None]:
    """Raise StorageError in place of OSError."""
    try:
        yield
    except OSError as error:
        found, do = _MESSAGES.get(error.errno or 0, (error.strerror or str(error), ""))
        raise StorageError(str(path), expected="a usable file", found=found, do=do) from error

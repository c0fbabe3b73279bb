"""The one door to bytes that lie somewhere: paths and URLs in; streams, ranges, whole files out.

Shards are read by URL (`stat`, `open_stream`, `read_range`, `find`). A collection is a `Folder`, in
which a file gets its final name only once it is whole: written under a temporary name that carries
the run's id, flushed to the disk, renamed. The choice: one backend per URL scheme in a dict, and
nothing beyond what an object store can do too (whole puts, ranges, flat listings). Its cost: no
appending, and two flushes to the disk for each file written. What goes wrong with a shard is a
SourceError, what goes wrong in a folder a StorageError, one line each.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import io
import os
import re
import stat as modes
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import quote_from_bytes, unquote_to_bytes

from pipeline.errors import SourceError, StorageError, UsageError

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)://")
_TEMPORARY = re.compile(r"^\..+\.(?P<run>[^./]*)\.tmp$")


@dataclass(frozen=True, slots=True)
class Stat:
    """`size` in bytes; `version` changes with the content (local files: modification time, ns)."""

    size: int
    version: str


class Backend(Protocol):
    """What one URL scheme must be able to do; every `url` is canonical."""

    def canonical(self, url: str) -> str: ...
    def local(self, url: str) -> Path | None: ...
    def stat(self, url: str) -> Stat: ...
    def is_folder(self, url: str) -> bool: ...
    def open_stream(self, url: str) -> BinaryIO: ...
    def read_range(self, url: str, offset: int, size: int) -> bytes: ...
    def find(self, pattern: str) -> list[str]: ...
    def exists(self, url: str) -> bool: ...
    def list(self, url: str) -> list[str]: ...
    def read_bytes(self, url: str) -> bytes: ...
    def create(self, url: str, run_id: str) -> PendingFile: ...
    def remove(self, url: str) -> None: ...


def canonical_url(path_or_url: str) -> str:
    """One name for one place: `a.tar` -> `file:///abs/real/a.tar`, symbolic links resolved.

    Raises UsageError for a scheme without a backend."""
    return _backend(path_or_url).canonical(path_or_url)


def stat(url: str) -> Stat:
    """Size and version of a file; SourceError when it is missing or no file."""
    return _backend(url).stat(url)


def is_folder(url: str) -> bool:
    """Whether `url` is a folder that can be listed."""
    return _backend(url).is_folder(url)


def open_stream(url: str) -> BinaryIO:
    """A file for reading from front to back; SourceError when it cannot be opened."""
    return _backend(url).open_stream(url)


def read_range(url: str, offset: int, size: int) -> bytes:
    """Exactly `size` bytes from `offset` on; SourceError when the file ends before."""
    return _backend(url).read_range(url, offset, size)


def find(pattern: str) -> list[str]:
    """Canonical URLs of what matches a glob (`*`, `?`, `[...]`, `**`), sorted by path."""
    return _backend(pattern).find(pattern)


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
        path = self._backend.local(self._child(name))
        if path is None:
            raise StorageError(
                self._child(name), expected="a file of this machine", do="copy it here first"
            )
        return path

    def exists(self, name: str) -> bool:
        return self._backend.exists(self._child(name))

    def list(self, prefix: str = "") -> list[str]:
        """Sorted names of the files right under `prefix`, temporaries included."""
        if not prefix:
            return self._backend.list(self.url)
        return [f"{prefix}/{base}" for base in self._backend.list(self._child(prefix))]

    def read_bytes(self, name: str) -> bytes:
        return self._backend.read_bytes(self._child(name))

    def write_whole(self, name: str, data: bytes, run_id: str = "") -> None:
        """Put `data` under `name`. Readers see all of the old content or all of the new."""
        with self.create(name, run_id) as file:
            file.write(data)
            file.commit()

    def create(self, name: str, run_id: str) -> PendingFile:
        """A file to write in a `with`: `commit()` gives it its name, else it leaves no trace."""
        return self._backend.create(self._child(name), run_id)

    def remove(self, name: str) -> None:
        """Remove a file; one that is gone already is no error, since two runs may sweep at once."""
        self._backend.remove(self._child(name))

    def _child(self, name: str) -> str:
        if not name or name.startswith("/") or ".." in name.split("/"):
            raise ValueError(f"expected a name inside the folder, found {name!r}")
        return f"{self.url.rstrip('/')}/{quote_from_bytes(os.fsencode(name))}"


def temporary_of(name: str, run_id: str) -> str:
    """The name under which a run writes `name` until it is whole: `ledger/.a.json.<run id>.tmp`."""
    if not re.fullmatch(r"[^./]*", run_id):
        raise ValueError(f"expected a run id without dots and slashes, found {run_id!r}")
    folder, slash, base = name.rpartition("/")
    return f"{folder}{slash}.{base}.{run_id}.tmp"


def is_temporary(name: str) -> bool:
    """Whether `name` is one that `temporary_of` gives."""
    return _TEMPORARY.match(name.rpartition("/")[2]) is not None


def run_of_temporary(name: str) -> str:
    """The id of the run that writes, or left, the temporary `name`."""
    found = _TEMPORARY.match(name.rpartition("/")[2])
    if found is None:
        raise ValueError(f"expected the name of a temporary, found {name!r}")
    return found["run"]


class PendingFile(io.BufferedWriter):
    """A local file under its temporary name. `commit()` names it, leaving its `with` removes it."""

    def __init__(self, target: Path, run_id: str) -> None:
        self.target = target
        self.temporary = Path(temporary_of(str(target), run_id))
        with _told_as_storage_error(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            super().__init__(io.FileIO(self.temporary, "xb", opener=_open_anew), 1 << 20)
            self._inode = os.fstat(self.fileno()).st_ino

    def write(self, data) -> int:
        with _told_as_storage_error(self.target):
            return super().write(data)

    def flush(self) -> None:
        with _told_as_storage_error(self.target):
            super().flush()

    def commit(self) -> None:
        """Flush to the disk, close, and give the file its final name."""
        self.flush()
        with _told_as_storage_error(self.target):
            os.fsync(self.fileno())
            if os.stat(self.temporary).st_ino != self._inode:
                # Another attempt of this run took the name over: its half-written file lies there.
                raise FileExistsError(errno.EEXIST, "taken over by another attempt", self.temporary)
            self.close()
            os.replace(self.temporary, self.target)
            _fsync_folder(self.target.parent)

    def __exit__(self, *raised: object) -> None:
        if self.closed:
            return
        with contextlib.suppress(OSError):
            if os.stat(self.temporary).st_ino == self._inode:
                os.unlink(self.temporary)
        with contextlib.suppress(
            StorageError
        ):  # the disk that was too full for the content still is
            self.close()


class LocalFiles:
    """The backend of `file://` URLs and of plain paths."""

    def canonical(self, url: str) -> str:
        path = os.path.realpath(os.path.expanduser(_path_of(url)))
        return "file://" + quote_from_bytes(os.fsencode(path))

    def local(self, url: str) -> Path:
        return Path(_path_of(url))

    def stat(self, url: str) -> Stat:
        with _told_as_source_error(url):
            found = os.stat(_path_of(url))
            if not modes.S_ISREG(found.st_mode):
                kind = "a folder" if modes.S_ISDIR(found.st_mode) else "a device or a pipe"
                raise SourceError(_path_of(url), expected="a file", found=kind)
        return Stat(found.st_size, str(found.st_mtime_ns))

    def is_folder(self, url: str) -> bool:
        return os.path.isdir(_path_of(url))

    def open_stream(self, url: str) -> BinaryIO:
        with _told_as_source_error(url):
            return open(_path_of(url), "rb")

    def read_range(self, url: str, offset: int, size: int) -> bytes:
        with _told_as_source_error(url), open(_path_of(url), "rb") as file:
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

    def find(self, pattern: str) -> list[str]:
        path = os.path.expanduser(_path_of(pattern))
        return [self.canonical(found) for found in sorted(glob.glob(path, recursive=True))]

    def exists(self, url: str) -> bool:
        return os.path.exists(_path_of(url))

    def list(self, url: str) -> list[str]:
        with _told_as_storage_error(_path_of(url)):
            try:
                with os.scandir(_path_of(url)) as entries:
                    return sorted(entry.name for entry in entries if entry.is_file())
            except FileNotFoundError:
                return []

    def read_bytes(self, url: str) -> bytes:
        with _told_as_storage_error(_path_of(url)):
            return Path(_path_of(url)).read_bytes()

    def create(self, url: str, run_id: str) -> PendingFile:
        return PendingFile(Path(_path_of(url)), run_id)

    def remove(self, url: str) -> None:
        with _told_as_storage_error(_path_of(url)), contextlib.suppress(FileNotFoundError):
            os.unlink(_path_of(url))


BACKENDS: dict[str, Backend] = {"file": LocalFiles()}


def _backend(path_or_url: str) -> Backend:
    found = _SCHEME.match(path_or_url)
    scheme = found[1].lower() if found else "file"
    if scheme not in BACKENDS:
        valid = ", ".join(f"{name}://" for name in BACKENDS)
        raise UsageError(path_or_url, expected=f"a path or one of {valid}", found=f"{scheme}://")
    return BACKENDS[scheme]


def _path_of(path_or_url: str) -> str:
    """`file:///a%20b` -> `/a b`; what is a path already stays as it is."""
    found = _SCHEME.match(path_or_url)
    if found is None:
        return path_or_url
    host, slash, path = path_or_url[found.end() :].partition("/")
    if host not in ("", "localhost") or not slash:
        raise UsageError(path_or_url, expected="file:///path", found=f"the host {host!r}")
    return os.fsdecode(unquote_to_bytes(slash + path))


def _open_anew(path: str, flags: int) -> int:
    """Open a new file, never the one that a dead attempt of the same run may have left."""
    try:
        return os.open(path, flags | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        os.unlink(path)
        return os.open(path, flags | os.O_CLOEXEC, 0o666)


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (
            errno.EINVAL,
            errno.ENOTSUP,
        ):  # some network file systems have no such thing
            raise
    finally:
        os.close(handle)


_FOUND = {  # errno -> (what was found, what to do)
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
def _told_as_source_error(url: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        found, do = _FOUND.get(error.errno or 0, (error.strerror or str(error), ""))
        raise SourceError(_path_of(url), expected="a file to read", found=found, do=do) from error


@contextlib.contextmanager
def _told_as_storage_error(path: Path | str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        found, do = _FOUND.get(error.errno or 0, (error.strerror or str(error), ""))
        raise StorageError(str(path), expected="a usable file", found=found, do=do) from error

"""Local copies of an object store's index files, for libraries that can only memory-map a file.

A copy is named by its checksum in the segment, downloaded under a temporary name, compared with the
checksum and renamed. So any number of collections and processes share the folder, and two that
download one file at once are both right. A copy's modification time is derived from its checksum:
whoever writes to it changes that time, and it is downloaded again. Beyond the size limit the least
recently used copies are removed, never one that this process has mapped. The cost: damage that
changes no modification time is not seen here; `chiasm check` reads the store itself.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat as modes
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader, BytesIO
from pathlib import Path

import platformdirs

from chiasm.index.segments.advice import build_command
from chiasm.index.segments.checksums import FileSum
from chiasm.pipeline.errors import CollectionError, StorageError, UsageError
from chiasm.pipeline.storage import (
    Folder,
    LocalFiles,
    display_name,
    is_abandoned,
    is_temporary,
)

DEFAULT_CACHE_GB = 20.0
CHUNK = 1 << 20
_COPY = re.compile(r"[0-9a-f]{32}(\.part)?")
SMALL = 8 << 20  # what is read whole by one request, where a stream may need several

_owners: dict[str, weakref.WeakSet[object]] = {}  # by checksum, who has mapped it in this process
_lock = threading.Lock()


def open_cached(folder: Folder, name: str, checksum: FileSum, owner: object) -> BufferedReader:
    """The local copy of a file of a collection, downloaded unless it is there unchanged; open, so
    that no other process can take it away before it is mapped. owner: what maps it. As long as it
    lives, the copy is not removed by this process.

    Raises CollectionError where the store holds other content, StorageError where there is no room.
    """
    cache = cache_folder()
    copy = cache / checksum.blake2b
    _claim(owner, checksum.blake2b)
    file = _open_unchanged(copy, checksum)
    if file is None:
        with writing_to_cache(cache):
            cache.mkdir(parents=True, exist_ok=True)
            _make_room(cache, checksum.size)
            file = _download(folder, name, checksum, copy)
    with suppress(OSError):  # in another user's cache: then it stays as it is
        os.utime(file.fileno(), ns=(time.time_ns(), _mtime_of(checksum)))
        _make_room(cache, 0)
    return file


def is_cached(checksum: FileSum) -> bool:
    """Whether there is a whole copy of a file, unchanged."""
    file = _open_unchanged(cache_folder() / checksum.blake2b, checksum)
    if file is not None:
        file.close()
    return file is not None


def open_sparse(checksum: FileSum, owner: object) -> tuple[BufferedReader, Path]:
    """The copy of a file of which parts are here, its descriptor also open for writing, and the
    folder that it is in. It has the size of the whole file, holes where nothing was written."""
    cache = cache_folder()
    name = f"{checksum.blake2b}.part"
    _claim(owner, name)
    with writing_to_cache(cache):
        cache.mkdir(parents=True, exist_ok=True)
        _make_room(cache, 0)
        descriptor = os.open(cache / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        file = open(descriptor, "rb")  # noqa: SIM115 (returned open)
        if os.fstat(descriptor).st_size != checksum.size:
            os.ftruncate(descriptor, checksum.size)
        os.utime(descriptor)
    return file, cache


def _claim(owner: object, blake2b: str) -> None:
    with _lock:
        _owners.setdefault(blake2b, weakref.WeakSet()).add(owner)


def cache_folder() -> Path:
    """Where copies are kept: in the platform's cache folder, XDG_CACHE_HOME where that is set."""
    return platformdirs.user_cache_path("chiasm", appauthor=False) / "segments"


def cache_limit_bytes() -> int:
    """The most bytes that are kept, by the environment's CHIASM_CACHE_GB."""
    value = os.environ.get("CHIASM_CACHE_GB") or str(DEFAULT_CACHE_GB)
    try:
        gigabytes = float(value)
    except ValueError:
        gigabytes = -1.0
    if not 0 <= gigabytes < float("inf"):
        raise UsageError("CHIASM_CACHE_GB", expected="a number of gigabytes", found=repr(value))
    return int(gigabytes * 1e9)


def _download(folder: Folder, name: str, checksum: FileSum, copy: Path) -> BufferedReader:
    digest, size = hashlib.blake2b(digest_size=16), 0
    target = LocalFiles().create(str(copy), "")
    small = folder.local is None and checksum.size <= SMALL
    with BytesIO(folder.read_bytes(name)) if small else folder.open_stream(name) as source, target:
        while chunk := source.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
            target.write(chunk)
        found = FileSum(size, digest.hexdigest())
        if found != checksum:
            raise CollectionError(
                display_name(folder.url_of(name)),
                expected=f"checksum {checksum.blake2b}, {checksum.size} bytes",
                found=f"{found.blake2b}, {found.size} bytes",
                do=f"run {build_command(folder)}",
            )
        # Opened before it has the name by which another process may remove it.
        file = open(target.temporary, "rb")  # noqa: SIM115 (returned open)
        try:
            target.commit()
        except BaseException:
            file.close()
            raise
    return file


def _make_room(cache: Path, size: int) -> None:
    """Remove the least recently used copies until `size` more bytes are within the limit, or only
    copies that this process has open are left. Files of other names are left alone."""
    copies: list[tuple[int, int, Path]] = []
    used = 0
    for path in cache.iterdir():
        with suppress(FileNotFoundError):  # another process makes room too
            if is_abandoned(path):
                path.unlink()
                continue
            is_copy, found = _COPY.fullmatch(path.name), path.lstat()
            if not modes.S_ISREG(found.st_mode) or not (is_copy or is_temporary(path.name)):
                continue
            taken = min(found.st_size, 512 * found.st_blocks)  # a copy may have holes
            used += taken
            if is_copy:
                copies.append((found.st_atime_ns, taken, path))
    excess = used + size - cache_limit_bytes()
    with _lock:
        for _, freed, path in sorted(copies):
            if excess <= 0:
                return
            if not _owners.get(path.name):
                path.unlink(missing_ok=True)
                excess -= freed


def _open_unchanged(copy: Path, checksum: FileSum) -> BufferedReader | None:
    try:
        file = open(copy, "rb")  # noqa: SIM115 (returned open)
    except OSError:
        return None
    found = os.fstat(file.fileno())
    if (found.st_size, found.st_mtime_ns) == (checksum.size, _mtime_of(checksum)):
        return file
    file.close()
    return None


def _mtime_of(checksum: FileSum) -> int:
    """The modification time of an unchanged copy, in ns since the epoch: derived from its checksum,
    in the seventies, and in whole seconds, as the coarsest file systems have them."""
    return int(checksum.blake2b[:7], 16) * 1_000_000_000


@contextmanager
def writing_to_cache(cache: Path) -> Iterator[None]:
    """Errors of this machine's disk as one line that says which environment variables help."""
    try:
        yield
    except (OSError, StorageError) as error:
        raise StorageError(
            str(cache),
            expected="room for copies of index files",
            found=_reason(error),
            do="free some, set CHIASM_CACHE_GB lower or XDG_CACHE_HOME to another disk",
        ) from error


def _reason(error: OSError | StorageError) -> str:
    if isinstance(error, StorageError):
        return error.found
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return "no space left" if full else error.strerror or str(error)

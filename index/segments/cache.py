"""Copies of a store's index files on this machine, for those who can only map a file.

The bucket is the truth: a copy is named by the checksum it has in its segment, pulled under a
temporary name, held against the checksum, renamed. So any number of collections and processes share
the folder, and two that pull one file at once are both right. A copy bears a seal, a time of change
made from its checksum: whoever writes to it breaks the seal, and it is pulled again. When more than
the bound lies there, what was used longest ago goes first, never what this process has open. The
cost: a flipped bit that no write made is not seen here; `chiasm check` reads the bucket itself.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from chiasm.index.segments.checksums import FileSum
from chiasm.pipeline.errors import CollectionError, StorageError, UsageError
from chiasm.pipeline.storage import Folder, display_name

BOUND_GB = 20.0
CHUNK = 1 << 20
FORGOTTEN_SECONDS = 86400.0  # a pull that has not ended by then died


_open: set[str] = set()  # checksums of the files that this process has mapped
_looking = threading.Lock()


def fetch_to_cache(folder: Folder, name: str, checksum: FileSum) -> Path:
    """The copy of a file of a collection, pulled if it is not there whole.

    Raises CollectionError where the bucket holds another, StorageError where there is no room."""
    copies = cache_folder()
    copy = copies / checksum.blake2b
    with _looking:
        _open.add(checksum.blake2b)
    if not _is_sealed(copy, checksum):
        with _told(copies):
            copies.mkdir(parents=True, exist_ok=True)
            _make_room(copies, checksum.size)
            _pull(folder, name, checksum, copy)
    with suppress(OSError):  # somebody else's cache, perhaps: then it keeps its times
        os.utime(copy, ns=(time.time_ns(), _seal(checksum)))
    return copy


def cache_folder() -> Path:
    """Where copies lie: below XDG_CACHE_HOME, else below ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "chiasm" / "segments"


def cache_limit_bytes() -> int:
    """The most bytes that are kept, by the environment's CHIASM_CACHE_GB."""
    told = os.environ.get("CHIASM_CACHE_GB") or str(BOUND_GB)
    try:
        size = float(told)
    except ValueError:
        size = -1.0
    if not 0 <= size < float("inf"):
        raise UsageError("CHIASM_CACHE_GB", expected="a number of gigabytes", found=repr(told))
    return int(size * 1e9)


def _pull(folder: Folder, name: str, checksum: FileSum, copy: Path) -> None:
    temporary = copy.with_name(f".{copy.name}.{secrets.token_hex(4)}.tmp")
    digest, size = hashlib.blake2b(digest_size=16), 0
    try:
        with folder.open_stream(name) as source, open(temporary, "xb") as target:
            while chunk := source.read(CHUNK):
                digest.update(chunk)
                size += len(chunk)
                target.write(chunk)
            # A seal that reaches the disk before the content would vouch for zeros.
            target.flush()
            os.fsync(target.fileno())
        found = FileSum(size, digest.hexdigest())
        if found != checksum:
            raise CollectionError(
                display_name(folder.url_of(name)),
                expected=f"checksum {checksum.blake2b}, {checksum.size} bytes",
                found=f"{found.blake2b}, {found.size} bytes",
                do="run chiasm index build",
            )
        os.utime(temporary, ns=(time.time_ns(), _seal(checksum)))
        os.replace(temporary, copy)
    finally:
        temporary.unlink(missing_ok=True)


def _make_room(copies: Path, wanted: int) -> None:
    """Remove what was used longest ago until `wanted` more bytes are within the bound."""
    lying: list[tuple[int, int, Path]] = []
    for path in copies.iterdir():
        with suppress(FileNotFoundError):  # another process makes room too
            found = path.stat()
            if path.name.startswith("."):
                if time.time() - found.st_mtime > FORGOTTEN_SECONDS:
                    path.unlink()
            else:
                lying.append((found.st_atime_ns, found.st_size, path))
    over = sum(size for _, size, _ in lying) + wanted - cache_limit_bytes()
    with _looking:
        for _, size, path in sorted(lying):
            if over <= 0:
                return
            if path.name not in _open:
                path.unlink(missing_ok=True)
                over -= size


def _is_sealed(copy: Path, checksum: FileSum) -> bool:
    try:
        found = copy.stat()
    except OSError:
        return False
    return (found.st_size, found.st_mtime_ns) == (checksum.size, _seal(checksum))


def _seal(checksum: FileSum) -> int:
    """A time of change, in ns since the epoch, that nothing but `fetch_to_cache` gives this
    content: a day of the seventies, in whole seconds, as the coarsest file systems have them."""
    return int(checksum.blake2b[:7], 16) * 1_000_000_000


@contextmanager
def _told(copies: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise StorageError(
            str(copies),
            expected="room for copies of index files",
            found="no space left" if full else error.strerror or str(error),
            do="free some, set CHIASM_CACHE_GB lower or XDG_CACHE_HOME elsewhere",
        ) from error

"""What the file system raises, as one line: a SourceError for a shard, a StorageError for a file of
a collection."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from chiasm.pipeline.errors import SourceError, StorageError

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
def source_errors(path: str) -> Iterator[None]:
    """Raise SourceError in place of OSError."""
    try:
        yield
    except OSError as error:
        found, do = _MESSAGES.get(error.errno or 0, (error.strerror or str(error), ""))
        raise SourceError(path, expected="a file to read", found=found, do=do) from error


@contextlib.contextmanager
def storage_errors(path: Path | str) -> Iterator[None]:
    """Raise StorageError in place of OSError."""
    try:
        yield
    except OSError as error:
        found, do = _MESSAGES.get(error.errno or 0, (error.strerror or str(error), ""))
        raise StorageError(str(path), expected="a usable file", found=found, do=do) from error


@contextlib.contextmanager
def removal_errors(path: str) -> Iterator[None]:
    """Like `storage_errors`, for removals, which never go through a symbolic link."""
    with storage_errors(path):
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise
            raise StorageError(
                path,
                expected="a folder of its own",
                found="a symbolic link in the path",
                do="remove what is behind it by hand: nothing is removed through a link",
            ) from error

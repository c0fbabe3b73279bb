"""The one door to the local file system: every call that touches a file of a collection.

`LocalFiles` builds its promises from these calls and uses no other. So a test that puts its own
`Disk` here counts them, dies at any of them, or loses whatever was not flushed. Paths are absolute.
Errors are OSErrors, as the system raises them.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

# A handle on a folder that only names it needs no permission to list it; Linux alone has it.
_NAME_ONLY = getattr(os, "O_PATH", os.O_RDONLY)


@dataclass(frozen=True, slots=True)
class Entry:
    """A name in a folder. Kinds are those behind symbolic links."""

    name: str
    is_file: bool
    is_folder: bool


class Disk:
    """The file system of this machine."""

    def stat(self, path: str) -> os.stat_result:
        return os.stat(path)

    def entries(self, path: str) -> list[Entry]:
        """What is in a folder, in no order."""
        with os.scandir(path) as found:
            return [_entry(one) for one in found]

    def read(self, path: str) -> bytes:
        return Path(path).read_bytes()

    def map(self, path: str) -> pa.NativeFile:
        """A file for random access, memory-mapped."""
        return pa.memory_map(os.fsencode(path))  # pyarrow encodes text as UTF-8, whatever it is

    def create(self, path: str) -> io.FileIO:
        """A new file to write to; FileExistsError where the name is taken."""
        return io.FileIO(path, "xb")

    def flush_file(self, file: io.FileIO) -> None:
        """Return once the file's content is on the disk."""
        os.fsync(file.fileno())

    def flush_folder(self, path: str) -> None:
        """Return once the names in a folder are on the disk."""
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        except OSError as error:
            # Some network file systems cannot flush a folder.
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            os.close(handle)

    def rename(self, old: str, new: str) -> None:
        """Give a file another name, in place of the file that has it."""
        os.replace(old, new)

    def link(self, old: str, new: str) -> None:
        """Give a file a second name; FileExistsError where that is taken."""
        os.link(old, new)

    def make_folder(self, path: str) -> None:
        os.mkdir(path)

    def remove(self, path: str) -> None:
        """Remove a name; ELOOP or ENOTDIR where a folder of the path is a symbolic link."""
        with _folder_without_links(os.path.dirname(path)) as folder:
            os.unlink(os.path.basename(path), dir_fd=folder)

    def discard(self, path: str) -> None:
        """Remove a file that this process has just made, wherever its folder leads to."""
        os.unlink(path)

    def remove_folder(self, path: str) -> None:
        """Remove an empty folder; ELOOP or ENOTDIR where it, or one above it, is a symbolic
        link."""
        with _folder_without_links(os.path.dirname(path)) as folder:
            os.rmdir(os.path.basename(path), dir_fd=folder)


def _entry(found: os.DirEntry[str]) -> Entry:
    try:
        return Entry(found.name, found.is_file(), found.is_dir())
    except OSError:  # a link that leads back to itself, or to where nobody may look
        return Entry(found.name, is_file=False, is_folder=False)


@contextmanager
def _folder_without_links(path: str) -> Iterator[int]:
    """A handle on a folder, opened step by step from the root, through no symbolic link. What is
    done by it cannot be led elsewhere by a link that somebody makes meanwhile."""
    flags = _NAME_ONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open("/", flags)
    try:
        for part in Path(path).parts[1:]:
            below = os.open(part, flags, dir_fd=handle)
            os.close(handle)
            handle = below
        yield handle
    finally:
        os.close(handle)

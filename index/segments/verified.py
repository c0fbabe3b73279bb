"""What was found right on this machine already, so that a second opening costs nothing.

A local index file is compared with the checksum in its segment before it is used, whole or block by
block (local_parts.py). That all of it was right is remembered by device, inode, size, and times of
the last change of content and inode: a copy, or a file written over, differs in one of them and is
compared again. It is remembered in the person's cache folder, not beside the index, so that
read-only indexes work. Where that folder cannot be written, each opening compares again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from io import BufferedReader
from pathlib import Path

import platformdirs

from chiasm.index.segments.checksums import FileSum

KEPT = 20_000  # files that are remembered, about; the oldest half is forgotten beyond
COUNTED = 64  # one in so many marks has them counted: to list 20,000 takes milliseconds


def is_verified(file: BufferedReader, checksum: FileSum) -> bool:
    """Whether an open file has this checksum; it is read only where that is not remembered."""
    name = mark_of(file, checksum)
    if os.fstat(file.fileno()).st_size != checksum.size:
        return False
    if is_remembered(name):
        return True
    if FileSum.of_file(file) != checksum:
        return False
    if mark_of(file, checksum) == name:  # it did not change meanwhile
        remember(name)
    return True


def name_of(*facts: object) -> str:
    """A name for facts that were found right together."""
    text = "\0".join(map(str, facts)).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def is_remembered(name: str) -> bool:
    return os.path.exists(verified_folder() / name)


def remember(name: str) -> None:
    """Remember that what has this name was right, if the folder can be written."""
    folder = verified_folder()
    with contextlib.suppress(OSError):  # it is compared again the next time
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
        if int(name, 16) % COUNTED == 0:
            _forget_oldest(folder)


def verified_folder() -> Path:
    """Where it is remembered: in the platform's cache folder, XDG_CACHE_HOME where that is set."""
    return platformdirs.user_cache_path("chiasm", appauthor=False) / "verified"


def mark_of(file: BufferedReader, checksum: FileSum) -> str:
    """The name by which it is remembered that an open file, as it is now, has this checksum."""
    found = os.fstat(file.fileno())
    times = found.st_mtime_ns, found.st_ctime_ns
    return name_of(found.st_dev, found.st_ino, found.st_size, *times, checksum.blake2b)


def _forget_oldest(folder: Path) -> None:
    if len(names := os.listdir(folder)) <= KEPT:
        return
    marks = sorted((folder / name for name in names), key=lambda mark: mark.stat().st_mtime_ns)
    for mark in marks[: KEPT // 2]:
        mark.unlink(missing_ok=True)

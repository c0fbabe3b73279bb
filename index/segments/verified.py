"""Which local index files were compared with their checksums already.

A file that a search maps is read whole once and compared with the checksum in its segment. That it
was right is remembered by device, inode, size, and times of the last change of content and inode:
a copy, or a file written over, differs in one of them and is compared again. It is remembered in
the person's cache folder, not beside the index, so that read-only indexes work. Where that folder
cannot be written, each opening compares again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from io import BufferedReader
from pathlib import Path

import platformdirs

from chiasm.index.segments.checksums import FileSum

KEPT = 20_000  # files that are remembered; the oldest half is forgotten beyond


def is_verified(file: BufferedReader, checksum: FileSum) -> bool:
    """Whether an open file has this checksum; it is read only where that is not remembered."""
    before = _identity(file)
    if before.st_size != checksum.size:
        return False
    mark = verified_folder() / _mark_name(before, checksum)
    if os.path.exists(mark):
        return True
    if FileSum.of_file(file) != checksum:
        return False
    if _mark_name(_identity(file), checksum) == mark.name:  # it did not change meanwhile
        with contextlib.suppress(OSError):  # it is compared again the next time
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
            _forget_oldest(mark.parent)
    return True


def verified_folder() -> Path:
    """Where it is remembered: in the platform's cache folder, XDG_CACHE_HOME where that is set."""
    return platformdirs.user_cache_path("chiasm", appauthor=False) / "verified"


def _identity(file: BufferedReader) -> os.stat_result:
    return os.fstat(file.fileno())


def _mark_name(found: os.stat_result, checksum: FileSum) -> str:
    parts = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    text = " ".join(map(str, (*parts, checksum.blake2b)))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _forget_oldest(folder: Path) -> None:
    if len(names := os.listdir(folder)) <= KEPT:
        return
    marks = sorted((folder / name for name in names), key=lambda mark: mark.stat().st_mtime_ns)
    for mark in marks[: KEPT // 2]:
        mark.unlink(missing_ok=True)

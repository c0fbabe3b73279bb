"""A local file that is read from front to back, and here and there."""

from __future__ import annotations

import io
import os
from typing import Any

from chiasm.pipeline.storage.backend import Stat, Stream


class LocalStream(Stream):
    """A file of this machine, open for reading."""

    def stat(self) -> Stat:
        found = os.fstat(self.fileno())
        return Stat(found.st_size, str(found.st_mtime_ns))

    def second_reader(self) -> Stream:
        return LocalStream(_SecondReader(self.fileno()), io.DEFAULT_BUFFER_SIZE)


class _SecondReader(io.RawIOBase):
    """The file of a descriptor with a position of its own; closing it leaves that one open."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._position = descriptor, 0

    def fileno(self) -> int:
        return self._descriptor

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position}.get(whence)
        if base is None:
            base = os.fstat(self._descriptor).st_size
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        size = os.preadv(self._descriptor, [buffer], self._position)
        self._position += size
        return size

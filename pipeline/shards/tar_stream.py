"""The bytes of a shard as its tar is read: unpacked, from front to back, each within a limit.

What comes before a cut or an error in a compressed file is given before the error is raised. Two
limits hold here, because only here all bytes pass: how much of them one header may take, and how
many times its own size a compressed shard may unpack to.
"""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import zlib
from collections.abc import Callable
from contextlib import ExitStack

import pyarrow as pa

# Headers are read into memory: long names and pax records too, of which real ones have some hundred
# bytes, names of files at most 4,096.
MOST_HEADER = 1 << 16

# Text in tiny members packs 100 times, what a person makes hardly ever 500. Below so many bytes
# unpacking costs seconds whatever the ratio is.
MOST_EXPANSION, FREE_EXPANSION = 500, 1 << 30

# What tarfile and the decompressors raise for bytes that are not what they should be.
BAD_BYTES = (
    tarfile.TarError,
    EOFError,
    IndexError,
    OSError,
    OverflowError,
    RecursionError,
    ValueError,
    zlib.error,
)

_UNBOUNDED = float("inf")
_CHUNK = 1 << 16
_GZIP = re.compile(rb"\x1f\x8b", re.DOTALL)
# The second form is a skippable frame, with which parallel compressors begin.
_ZSTD = re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18", re.DOTALL)


class Bomb(tarfile.ReadError):
    """A compressed shard unpacks to more than it may."""


class Content:
    """The bytes of a tar, forward only: as tarfile wants them of a file.

    compressed: whether they lie packed in the shard, so that no range of it gives them."""

    def __init__(self, files: ExitStack, raw: io.BufferedReader, magic: bytes) -> None:
        self.compressed = True
        self._packed = _Counted(raw)
        if _GZIP.match(magic):
            self._read_some = files.enter_context(gzip.GzipFile(fileobj=self._packed)).read1
        elif _ZSTD.match(magic):
            self._read_some = _zstd_blocks(files, self._packed)
        else:
            self.compressed, self._read_some = False, raw.read
        self._ahead = b""
        self._at = self._unpacked = 0
        self.left = _UNBOUNDED  # of the header that is being read
        self.header = _OneHeader(self)
        self._error: Exception | None = None

    def tell(self) -> int:
        return self._at

    def seek(self, to: int) -> int:
        """Read on to there, or to the end."""
        if to < self._at:
            raise tarfile.ReadError("a header that points back")
        while self._at < to and self.read(min(_CHUNK, to - self._at)):
            pass
        return self._at

    def peek(self, size: int) -> bytes:
        data = self._take(size)
        self._ahead = data + self._ahead
        return data

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, fewer at the end; raises where none is left before an error."""
        if size > self.left:
            raise tarfile.ReadError(f"more than {MOST_HEADER} bytes of headers for one member")
        self.left -= size
        data = self._take(size)
        self._at += len(data)
        return data

    def _take(self, size: int) -> bytes:
        if not self.compressed and not self._ahead:  # all that there is comes by one read
            return self._read_some(size)
        parts, self._ahead = [self._ahead[:size]], self._ahead[size:]
        missing = size - len(parts[0])
        while missing and self._error is None:
            try:
                part = self._read_some(missing)
                self._check_expansion(len(part))
            except BAD_BYTES as error:
                if isinstance(error, OSError) and error.errno:  # not of the bytes: of the disk
                    raise
                self._error = error
                break
            if not part:
                break
            parts.append(part)
            missing -= len(part)
        if self._error is not None and missing == size:
            raise self._error
        return b"".join(parts)

    def _check_expansion(self, size: int) -> None:
        self._unpacked += size
        most = max(FREE_EXPANSION, MOST_EXPANSION * self._packed.given)
        if self.compressed and self._unpacked > most:
            told = f"{self._packed.given} bytes of it unpack to more than {most}"
            raise Bomb(told)


class _OneHeader:
    """A context, entered again and again: what is read inside belongs to the headers of one
    member."""

    def __init__(self, content: Content) -> None:
        self._content = content

    def __enter__(self) -> None:
        self._content.left = MOST_HEADER

    def __exit__(self, *raised: object) -> None:
        self._content.left = _UNBOUNDED


class _Counted(io.RawIOBase):
    """A file that counts what it gave; closing it leaves that one open."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file, self.given = file, 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(size)
        self.given += len(data)
        return data


def _zstd_blocks(files: ExitStack, packed: _Counted) -> Callable[[int], bytes]:
    stream = files.enter_context(pa.CompressedInputStream(pa.PythonFile(packed, mode="r"), "zstd"))
    # Arrow gives all that is asked for or nothing, so it is asked for a block at a time.
    return lambda size: stream.read(min(size, tarfile.BLOCKSIZE))

"""The bytes of a shard's tar: decompressed, sequential, within limits.

Bytes before a cut or an error in a compressed file are returned before the error is raised. Two
limits are checked here, where all bytes pass: the size of one member's headers, and how many times
its own size a compressed shard may decompress to.
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

from chiasm.pipeline.storage import Stream

# Headers are read into memory, long names and pax records included. Real ones have some hundred
# bytes; file names have at most 4,096.
MAX_HEADER = 1 << 16

# Text in tiny members is compressed 100 times, honest files hardly ever 500 times. Decompressing
# fewer bytes than the second limit costs seconds, whatever the ratio is.
MAX_EXPANSION, FREE_EXPANSION = 500, 1 << 30

# What tarfile and the decompressors raise for invalid bytes.
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
# A smaller gap is mostly in a buffer already.
SEEK_OVER = 1 << 20
_CHUNK = 1 << 16
_GZIP = re.compile(rb"\x1f\x8b", re.DOTALL)
# The second form is a skippable frame, with which parallel compressors begin.
_ZSTD = re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18", re.DOTALL)


class Bomb(tarfile.ReadError):
    """A compressed shard decompresses to more bytes than the limit."""


class Content:
    """The bytes of a tar as a forward-only file for tarfile.

    compressed: whether the shard is, so that a member's bytes are no range of it. error: that of
    decompressing, once all before it was read."""

    def __init__(
        self, files: ExitStack, raw: Stream, magic: bytes, size: int, seek_over: int = SEEK_OVER
    ) -> None:
        """size: of the file in bytes, -1 where it is not known. seek_over: gaps of more bytes are
        not read through, where the file can be sought in."""
        self.compressed = True
        self._raw, self._size, self._seek_over = raw, size, seek_over
        self._compressed_file = _CountingFile(raw)
        if _GZIP.match(magic):
            self._read_some = files.enter_context(
                gzip.GzipFile(fileobj=self._compressed_file)
            ).read1
        elif _ZSTD.match(magic):
            self._read_some = _zstd_blocks(files, self._compressed_file)
        else:
            self.compressed, self._read_some = False, raw.read
        self._seekable = not self.compressed and size >= 0 and raw.seekable()
        self._peeked = b""
        self._position = self._decompressed = 0
        self.header_bytes_left = _UNBOUNDED  # of the member whose headers are read
        self.header = _HeaderLimit(self)
        self.error: Exception | None = None

    def tell(self) -> int:
        return self._position

    def seek(self, to: int) -> int:
        """Go forward to an offset, or to the end; tarfile.ReadError for an earlier offset."""
        if to < self._position:
            raise tarfile.ReadError("a header that points back")
        if self._seekable and to - self._position > self._seek_over:
            self.go_to(min(to, self._size))
        while self._position < to and self.read(min(_CHUNK, to - self._position)):
            pass
        return self._position

    def go_to(self, offset: int) -> None:
        """Go to any offset of a file that is not compressed and can be sought in."""
        self._peeked = b""
        self._position = self._raw.seek(offset)

    def skip_zeros(self) -> int:
        """Go over whole blocks of zeros, and over zeros at the end; returns the offset."""
        while chunk := self.peek(_CHUNK):
            zeros = len(chunk) - len(chunk.lstrip(b"\0"))
            whole = zeros == len(chunk)
            self.read(zeros if whole else zeros // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE)
            if not whole:
                break
        return self._position

    def peek(self, size: int) -> bytes:
        data = self._take(size)
        self._peeked = data + self._peeked
        return data

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, fewer at the end; raises an error after the bytes before it."""
        if size > self.header_bytes_left:
            raise tarfile.ReadError(f"more than {MAX_HEADER} bytes of headers for one member")
        self.header_bytes_left -= size
        data = self._take(size)
        self._position += len(data)
        return data

    def _take(self, size: int) -> bytes:
        if not self.compressed and not self._peeked:  # one read returns all there is
            return self._read_some(size)
        parts, self._peeked = [self._peeked[:size]], self._peeked[size:]
        missing = size - len(parts[0])
        while missing and self.error is None:
            try:
                part = self._read_some(missing)
                self._check_expansion(len(part))
            except BAD_BYTES as error:
                if isinstance(error, OSError) and error.errno:  # the disk failed, not the content
                    raise
                self.error = error
                break
            if not part:
                break
            parts.append(part)
            missing -= len(part)
        if self.error is not None and missing == size:
            raise self.error
        return b"".join(parts)

    def _check_expansion(self, size: int) -> None:
        self._decompressed += size
        most = max(FREE_EXPANSION, MAX_EXPANSION * self._compressed_file.bytes_read)
        if self.compressed and self._decompressed > most:
            compressed = self._compressed_file.bytes_read
            raise Bomb(f"{compressed} bytes of it unpack to more than {most}")


class _HeaderLimit:
    """A context, entered for each member: bytes read inside it count as the member's headers."""

    def __init__(self, content: Content) -> None:
        self._content = content

    def __enter__(self) -> None:
        self._content.header_bytes_left = MAX_HEADER

    def __exit__(self, *raised: object) -> None:
        self._content.header_bytes_left = _UNBOUNDED


class _CountingFile(io.RawIOBase):
    """A file that counts the bytes read from it; closing it leaves the underlying one open."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file, self.bytes_read = file, 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(size)
        self.bytes_read += len(data)
        return data


def _zstd_blocks(files: ExitStack, compressed_file: _CountingFile) -> Callable[[int], bytes]:
    stream = files.enter_context(
        pa.CompressedInputStream(pa.PythonFile(compressed_file, mode="r"), "zstd")
    )
    # Arrow returns all requested bytes or none, so one block at a time is requested.
    return lambda size: stream.read(min(size, tarfile.BLOCKSIZE))

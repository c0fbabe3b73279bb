"""An encoded picture as a file that stops its decoder at a limit of time or of reads.

Pillow feeds nearly all codecs in small pieces, and its Python decoders read byte by byte. So the
file's reads are where a picture that takes too long, or has too many pieces, can be stopped in any
thread. A C library that decodes in one call cannot be stopped; there the limit on pixels limits the
time. Seconds are CPU time of this thread, not wall clock: a busy machine drops no more pictures
than an idle one.
"""

from __future__ import annotations

import io
import time

from chiasm.pipeline.errors import Undecodable

# Each piece of metadata is an object of Python, some 200 bytes: the cost of 64 MB of empty ones
# would be gigabytes. Real pictures are opened in at most thousands of reads.
MAX_READS = 1 << 20
_MAX_LINE = 1 << 20  # of a picture written as text, which is parsed a line at a time
# The clock is read at large reads and at each 64th small one: it costs as much as a small read.
_CHECK_BYTES, _CHECK_READS = 1024, 64


class BoundedFile:
    """`data`, to be decoded by this thread within `seconds` of its CPU time (0: no limit).

    unbounded: reads without limits, for pictures known to be little work for their pixels; checking
    costs a twentieth of the time in which a common JPEG is decoded. ran_out: whether the decoder
    read past the end; a short last block of pixels does not count, and unbounded files do not know.
    Reads raise Undecodable at a limit.
    """

    def __init__(self, data: bytes, seconds: float, *, unbounded: bool = False) -> None:
        file = io.BytesIO(data)
        self.seek, self.tell, self.getvalue = file.seek, file.tell, file.getvalue
        self._read, self._readline = file.read, file.readline
        self.ran_out = False
        self._seconds = seconds
        self._deadline = float("inf")
        if seconds and not unbounded:
            self._deadline = time.thread_time() + seconds
        self._reads, self._max_reads = 0, float(MAX_READS)
        self._until_check = _CHECK_READS
        self._at_pixels, self._max_bytes = False, len(data)
        self.unbounded = unbounded
        if unbounded:
            vars(self)["read"] = file.read  # hides the method of that name

    def reopened(self) -> BoundedFile:
        """The same bytes from the start, within the time that is left."""
        file = BoundedFile(self.getvalue(), self._seconds, unbounded=self.unbounded)
        file._deadline = self._deadline
        return file

    def start_pixels(self, *, max_bytes: int | None = None, unlimited_reads: bool) -> None:
        """Set the limits for the pixels, after the header. max_bytes: the most that a read returns,
        for codecs that accept short reads. unlimited_reads: the number of reads has no limit."""
        self.ran_out, self._at_pixels = False, True
        self._max_bytes = max_bytes or self._max_bytes
        if unlimited_reads:
            self._max_reads = float("inf")

    def read(self, size: int | None = -1, /) -> bytes:
        self._until_check -= 1
        if self._until_check and size is not None and 0 <= size < _CHECK_BYTES:
            data = self._read(size)
            if len(data) < size:
                self.ran_out = True
            return data
        wanted = self._max_bytes if size is None or size < 0 else size
        self._check_limits()
        data = self._read(min(wanted, self._max_bytes))
        read_all = size is None or size < 0
        short_block = data and self._at_pixels and wanted >= _CHECK_BYTES
        if len(data) < wanted and not read_all and not short_block:
            self.ran_out = True
        return data

    def readline(self, size: int | None = -1, /) -> bytes:
        self._until_check -= 1
        self._check_limits()
        line = self._readline(_MAX_LINE)
        if len(line) == _MAX_LINE:
            raise Undecodable("too_much_metadata", f"a line of more than {_MAX_LINE} bytes")
        if not line:
            self.ran_out = True
        return line

    def _check_limits(self) -> None:
        self._reads += _CHECK_READS - self._until_check
        self._until_check = _CHECK_READS
        if self._reads > self._max_reads:
            raise Undecodable("too_much_metadata", f"more than {MAX_READS} pieces")
        if time.thread_time() > self._deadline:
            raise Undecodable("too_slow", f"more than {self._seconds:g} seconds")

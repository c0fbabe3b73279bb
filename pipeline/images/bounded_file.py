"""An encoded picture as a file that stops giving when its decoder has had enough.

Pillow feeds nearly all codecs in small pieces, and what is written in Python reads byte by byte:
so the file is the place from which a picture that takes too long, or is made of too many pieces,
can be given up in any thread. What a C library decodes in one call cannot be stopped so; there the
limit on pixels is the limit on time. Seconds are those this thread computed, not those that passed:
a busy machine drops no more pictures than an idle one.
"""

from __future__ import annotations

import io
import time

from chiasm.pipeline.errors import Undecodable

# Each piece of metadata is an object of Python, some 200 bytes: the cost of 64 MB of empty ones
# would be gigabytes. Real pictures are opened in at most thousands of reads.
MOST_READS = 1 << 20
_LONGEST_LINE = 1 << 20  # of a picture written as text, which is parsed a line at a time
_LOOK_BYTES, _LOOK_READS = 1024, 64  # looking at the clock costs as much as a small read


class BoundedFile:
    """`data`, to be decoded by this thread within `seconds` of its time (0: no limit).

    unbounded: it is known to be little work for its pixels, and is read without these limits, which
    cost a twentieth of the time in which a common JPEG is decoded. ran_out: whether more was asked
    for than there is, a last block of pixels aside, which codecs take as long as it is; not known
    where unbounded. Raises Undecodable where a limit is passed.
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
        self._reads, self._most_reads = 0, float(MOST_READS)
        self._until_look = _LOOK_READS
        self._at_pixels, self._most_bytes = False, len(data)
        self.unbounded = unbounded
        if unbounded:
            vars(self)["read"] = file.read  # stands before the method of that name

    def again(self) -> BoundedFile:
        """The same bytes from the first one on, within what is left of the time."""
        file = BoundedFile(self.getvalue(), self._seconds, unbounded=self.unbounded)
        file._deadline = self._deadline
        return file

    def go_on_to_pixels(self, *, most_bytes: int | None = None, by_bytes: bool) -> None:
        """The header is read. most_bytes: what a read gives at most, where short reads are no
        matter; by_bytes: the codec may read as often as it likes."""
        self.ran_out, self._at_pixels = False, True
        self._most_bytes = most_bytes or self._most_bytes
        if by_bytes:
            self._most_reads = float("inf")

    def read(self, size: int | None = -1, /) -> bytes:
        self._until_look -= 1
        if self._until_look and size is not None and 0 <= size < _LOOK_BYTES:
            got = self._read(size)
            if len(got) < size:
                self.ran_out = True
            return got
        wanted = self._most_bytes if size is None or size < 0 else size
        self._look()
        got = self._read(min(wanted, self._most_bytes))
        all_of_it = size is None or size < 0
        a_block = got and self._at_pixels and wanted >= _LOOK_BYTES  # the last one is short
        if len(got) < wanted and not all_of_it and not a_block:
            self.ran_out = True
        return got

    def readline(self, size: int | None = -1, /) -> bytes:
        self._until_look -= 1
        self._look()
        line = self._readline(_LONGEST_LINE)
        if len(line) == _LONGEST_LINE:
            raise Undecodable("too_much_metadata", f"a line of more than {_LONGEST_LINE} bytes")
        if not line:
            self.ran_out = True
        return line

    def _look(self) -> None:
        self._reads += _LOOK_READS - self._until_look
        self._until_look = _LOOK_READS
        if self._reads > self._most_reads:
            raise Undecodable("too_much_metadata", f"more than {MOST_READS} pieces")
        if time.thread_time() > self._deadline:
            raise Undecodable("too_slow", f"more than {self._seconds:g} seconds")

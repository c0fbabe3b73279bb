"""Parts of large local files: a block is verified when it is first used.

To compare a file of gigabytes with its checksum takes seconds, for which no first answer should
wait. So a file beyond WHOLE_BYTES that was not verified before (verified.py) is read by blocks, as
one in a store is, and each is compared with its own checksum (blocks.py) before it is used. Every
search verifies a little more, so that after some hundred the whole file is known, and remembered as
any other: then a block costs nothing. Blocks are read and not mapped: mapped pages count as memory
of this process, though none but the hash needs them.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from io import BufferedReader

import numpy as np

from chiasm.index.segments import verified
from chiasm.index.segments.blocks import Blocks
from chiasm.index.segments.checksums import FileSum
from chiasm.index.segments.partial import READ_BYTES, Parts
from chiasm.pipeline.storage import Folder

WHOLE_BYTES = 1 << 20  # a smaller file is compared whole: a millisecond


class LocalParts(Parts):
    """A file of this machine. complete: all of it is known to be right."""

    def __init__(
        self, folder: Folder, name: str, checksum: FileSum, blocks: Blocks, file: BufferedReader
    ) -> None:
        super().__init__(folder, name, blocks, file)
        self._checksum, self._mark = checksum, verified.mark_of(file, checksum)
        self._next = 0  # all blocks before are known
        self.complete = verified.is_remembered(self._mark)
        if (size := os.fstat(file.fileno()).st_size) != checksum.size:
            raise self._damaged(f"{checksum.size} bytes", f"{size}")

    def requests(self, numbers: np.ndarray) -> list[tuple[int, int]]:
        """Nothing: what may be used is here. Raises CollectionError for other content."""
        if not self.complete and len(wrong := self.missing(numbers)):
            raise self._damaged_block(int(wrong[0]))
        return []

    def verify_more(self, size: int) -> None:
        """Verify about so many bytes that are not known yet."""
        for first, last in self._runs(size):
            self._verified(first, last)

    def finish(self) -> None:
        """Verify what is not known yet."""
        self.verify_more(int(self.blocks.offsets[-1]))

    def in_order(self) -> Iterator[memoryview]:
        """The content of every block in order, read once and verified unless it is known."""
        last_of_all = len(self.blocks.digests) - 1
        first = 0
        while first <= last_of_all:
            last = self._run_from(first, last_of_all)
            yield from self._verified(first, last)
            first = last + 1
        if not self.complete:
            self._next = first
            self._complete()

    def _runs(self, size: int) -> Iterator[tuple[int, int]]:
        """Blocks to verify next, the first and the last of each run."""
        last_of_all = len(self.blocks.digests) - 1
        while size > 0 and not self.complete:
            first = self._next
            if first <= last_of_all:
                last = self._run_from(first, last_of_all, size)
                if not self._known[first : last + 1].all():
                    yield first, last
                    size -= int(self.blocks.offsets[last + 1] - self.blocks.offsets[first])
                self._next = last + 1
            if self._next > last_of_all:
                self._complete()

    def _run_from(self, first: int, last: int, size: int = READ_BYTES) -> int:
        """The last of the blocks from `first` on that are read together, `last` at most."""
        end = self.blocks.offsets[first] + min(size, READ_BYTES)
        return min(last, max(first, int(np.searchsorted(self.blocks.offsets, end, "right")) - 2))

    def _verified(self, first: int, last: int) -> list[memoryview]:
        """The content of these blocks."""
        content = memoryview(self.fetched(first, last))
        offsets = (self.blocks.offsets[first : last + 2] - self.blocks.offsets[first]).tolist()
        blocks = [content[start:end] for start, end in itertools.pairwise(offsets)]
        if not self.complete:
            for number, block in enumerate(blocks, first):
                if not self._known[number]:
                    if not self._is_right(number, block):
                        raise self._damaged_block(number)
                    self._known[number] = True
        return blocks

    def _complete(self) -> None:
        if verified.mark_of(self.file, self._checksum) == self._mark:  # it did not change meanwhile
            verified.remember(self._mark)
        self.complete = True

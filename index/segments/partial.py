"""Parts of index files, each verified before it is used: of distant files, which are read by ranges
and kept in copies with holes, and of large local ones (local_parts.py).

A copy is a sparse file in the cache folder, of the size and named by the checksum of the whole. It
is memory-mapped as a whole copy is; a caller fetches the blocks before it reads them. What a copy
has is recorded nowhere: a block of it counts once its digest was found right in this process. So
processes share a copy, a kill or a loss of power leaves nothing that would be believed, and a hole
is only a block of another digest. The cost: a block that is there is hashed once a process.

Blocks that are next to each other are one request. A round makes at most MOST_READS requests a
file: where more would be needed, the nearest are joined by reading what is between them. So a
single query reads little, and large batches soon have a whole file.
"""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Sequence
from io import BufferedReader
from typing import Protocol

import numpy as np

from chiasm.index.segments.advice import build_command
from chiasm.index.segments.blocks import Blocks
from chiasm.index.segments.cache import open_sparse, writing_to_cache
from chiasm.index.segments.checksums import FileSum
from chiasm.pipeline.errors import CollectionError, SourceError
from chiasm.pipeline.storage import Folder, display_name

AT_ONCE = 128  # requests: vectors and rows of a query's candidates are some hundred
MOST_READS = 128
# That are verified beyond what is needed, of all files together: a search does so some five times.
VERIFIED_MORE = 1 << 19
READ_BYTES = 1 << 20  # of one request, so that AT_ONCE of them take 128 MiB


class SegmentGone(CollectionError):
    """A file of a segment is not there any more: a later build may have swept it."""


def gone(folder: Folder, where: str) -> SegmentGone:
    do = f"run {build_command(folder)}"
    return SegmentGone(where, expected="a file of the index", found="no such file", do=do)


class Parts:
    """A file of a collection, of which blocks are used. Safe to share. file: that is open, closed
    with this. complete: all of it is here and known to be right."""

    complete = False

    def __init__(self, folder: Folder, name: str, blocks: Blocks, file: BufferedReader) -> None:
        self.folder, self.blocks, self.file = folder, blocks, file
        self._name = name
        weakref.finalize(self, file.close)
        self._known = np.diff(blocks.offsets) == 0

    def fetched(self, first: int, last: int) -> bytes:
        """The bytes of blocks that were fetched, of `first` to `last` inclusively."""
        start, end = self.blocks.offsets[[first, last + 1]].tolist()
        return os.pread(self.file.fileno(), end - start, start)

    def requests(self, numbers: np.ndarray) -> list[tuple[int, int]]:
        """What to `read` so that these blocks may be used: the first and the last block of each
        request."""
        raise NotImplementedError

    def read(self, first: int, last: int) -> None:
        """Request the blocks `first` to `last`, verify and keep them."""
        raise NotImplementedError

    def verify_more(self, size: int) -> None:
        """Verify about so many bytes that are here and not known yet, if any are."""

    def missing(self, numbers: np.ndarray) -> np.ndarray:
        """Of these blocks those that are not here as they should be: sorted, each once."""
        unknown = np.unique(numbers[~self._known[numbers]])
        for number in unknown.tolist():
            self._known[number] = self._is_right(number, self.fetched(number, number))
        return unknown[~self._known[unknown]]

    def _is_right(self, number: int, data: bytes | memoryview) -> bool:
        digest = self.blocks.digests[number].tobytes()
        return hashlib.blake2b(data, digest_size=len(digest)).digest() == digest

    def _damaged_block(self, number: int) -> CollectionError:
        start, end = self.blocks.offsets[[number, number + 1]].tolist()
        digest = self.blocks.digests[number].tobytes().hex()
        place = f"{end - start} bytes from byte {start} on"
        return self._damaged(f"checksum {digest} of {place}", "another")

    def _damaged(self, expected: str, found: str) -> CollectionError:
        do = f"run {build_command(self.folder)}"
        return CollectionError(self._where, expected=expected, found=found, do=do)

    @property
    def _where(self) -> str:
        return display_name(self.folder.url_of(self._name))


class PartialCopy(Parts):
    """A file of a collection in a store, of which parts are here. owner: what maps it; as long as
    it lives, the copy is not removed by this process."""

    def __init__(
        self, folder: Folder, name: str, checksum: FileSum, blocks: Blocks, owner: object
    ) -> None:
        file, self._cache = open_sparse(checksum, owner)
        super().__init__(folder, name, blocks, file)

    def requests(self, numbers: np.ndarray) -> list[tuple[int, int]]:
        missing = self.missing(numbers)
        return self.reads(missing) if len(missing) else []

    def reads(self, numbers: np.ndarray) -> list[tuple[int, int]]:
        """What to request for sorted blocks: the first and the last block of each request."""
        offsets = self.blocks.offsets
        between = offsets[numbers[1:]] - offsets[numbers[:-1] + 1]
        cuts = np.flatnonzero(between)
        if len(cuts) >= MOST_READS:
            cuts = np.sort(np.argpartition(-between, MOST_READS - 1)[: MOST_READS - 1])
        reads: list[tuple[int, int]] = []
        for run in np.split(numbers, cuts + 1):
            first, last = int(run[0]), int(run[-1])
            while offsets[last + 1] - offsets[first] > READ_BYTES and first < last:
                end = int(np.searchsorted(offsets, offsets[first] + READ_BYTES, "right")) - 2
                end = min(max(first, end), last - 1)
                reads.append((first, end))
                first = end + 1
            reads.append((first, last))
        return reads

    def read(self, first: int, last: int) -> None:
        offsets = self.blocks.offsets
        start, end = int(offsets[first]), int(offsets[last + 1])
        data = memoryview(self._request(start, end - start))
        for number in range(first, last + 1):
            block = data[offsets[number] - start : offsets[number + 1] - start]
            if not self._is_right(number, block):
                raise self._damaged_block(number)
        with writing_to_cache(self._cache):
            while data:
                written = os.pwrite(self.file.fileno(), data, start)
                data, start = data[written:], start + written
        self._known[first : last + 1] = True

    def _request(self, start: int, size: int) -> bytes:
        try:
            return self.folder.read_range(self._name, start, size)
        except SourceError:
            found, whole = self.folder.stat(self._name), int(self.blocks.offsets[-1])
            if found is None:
                raise gone(self.folder, self._where) from None
            if found.size not in (whole, -1):
                raise self._damaged(f"{whole} bytes", str(found.size)) from None
            raise


class Fetched(Protocol):
    """What is read in blocks, as `Parts` is."""

    @property
    def folder(self) -> Folder: ...
    def requests(self, numbers: np.ndarray) -> list[tuple[int, int]]: ...
    def read(self, first: int, last: int) -> None: ...
    def verify_more(self, size: int) -> None: ...


Wanted = tuple[Fetched, np.ndarray]  # and numbers of blocks of it, (n,) int64


def fetch(wanted: Sequence[Wanted]) -> None:
    """Make these blocks be here and verified, in one round of requests.

    Raises CollectionError for other content, SegmentGone where a file was removed, StorageError
    where the cache has no room."""
    reads = [(parts, *read) for parts, numbers in wanted for read in parts.requests(numbers)]
    for parts, _ in wanted:
        parts.verify_more(VERIFIED_MORE // len(wanted))
    if reads:
        folder = reads[0][0].folder
        list(folder.map_concurrent(lambda read: read[0].read(*read[1:]), reads, AT_ONCE))

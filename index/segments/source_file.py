"""What an index keeps of vectors that it has no copy of: which rows have one, and digests.

    COLUMN.source   a bit a row, whether it has a vector; then, of each shard, a bit a row of its
                    Parquet file, whether the segment has it, where it has not all; then a digest of
                    each GROUP rows of the file, of their vectors as float16, zero where there is
                    none

A row takes a quarter of a byte.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from chiasm.index.segments.catalog import IndexedShard

GROUP = 256  # rows: those of a row group, as files are written; another size is only slower
DIGEST = 8  # bytes, as of other blocks (blocks.py)


def digests_of(vectors: np.ndarray) -> bytes:
    """Of each GROUP rows (n, D) float16, and of what is left at the end, one after the other."""
    data, size = memoryview(vectors.astype("<f2").tobytes()), GROUP * 2 * vectors.shape[1]
    starts = range(0, len(data), size)
    return b"".join(_digest(data[start : start + size]) for start in starts)


def _digest(data: Any) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST).digest()


def group_count(shard: IndexedShard) -> int:
    """How many groups the file of a shard has."""
    return -(-shard.file_rows // GROUP)


class Copied(Protocol):
    """Rows of another segment. has: which have a vector, (n,) bool. digests: of all groups of the
    file of their shard."""

    @property
    def has(self) -> np.ndarray: ...
    @property
    def digests(self) -> bytes: ...


class SourceWriter:
    """What COLUMN.source says, as rows come shard by shard. shards: of the segment."""

    def __init__(self, shards: Sequence[IndexedShard]) -> None:
        self._shards = shards
        self._has: list[np.ndarray] = []
        self._digests = [b""] * len(shards)
        self._kept: list[list[np.ndarray]] = [[] for _ in shards]
        self._rest: tuple[int, np.ndarray] | None = None  # of a shard: rows of a group begun

    def add(self, shard: int, vectors: np.ndarray, has: np.ndarray) -> None:
        """Take the vectors (n, D) float16 of consecutive rows of a shard's file, from its first on;
        has (n,) bool."""
        self._has.append(has)
        if self._rest is not None and self._rest[0] == shard:
            vectors = np.concatenate([self._rest[1], vectors])
        else:
            self._end()
        whole = len(vectors) // GROUP * GROUP
        self._digests[shard] += digests_of(vectors[:whole])
        self._rest = shard, vectors[whole:]

    def copy(self, shard: int, numbers: np.ndarray, copied: Copied) -> None:
        """Take rows of another segment; numbers (n,): of these rows in the shard's file."""
        self._has.append(copied.has)
        self._kept[shard].append(numbers)
        self._digests[shard] = copied.digests

    def _end(self) -> None:
        if self._rest is not None:
            shard, vectors = self._rest
            self._digests[shard] += digests_of(vectors)
            self._rest = None

    def to_bytes(self) -> bytes:
        self._end()
        parts = [np.packbits(np.concatenate([np.zeros(0, bool), *self._has]), bitorder="little")]
        for shard, kept in zip(self._shards, self._kept, strict=True):
            if shard.removed:
                bits = np.zeros(shard.file_rows, bool)
                bits[np.concatenate([np.zeros(0, np.int64), *kept])] = True
                parts.append(np.packbits(bits, bitorder="little"))
        return b"".join([*(part.tobytes() for part in parts), *self._digests])


def source_size(shards: Sequence[IndexedShard]) -> int:
    """Bytes of COLUMN.source of these shards."""
    removed = sum((shard.file_rows + 7) // 8 for shard in shards if shard.removed)
    rows = sum(shard.rows for shard in shards)
    return (rows + 7) // 8 + removed + DIGEST * sum(map(group_count, shards))

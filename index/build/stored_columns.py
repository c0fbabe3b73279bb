"""What a segment has of its columns, for another one to take as it is: codes, lists and vectors.

Nothing is encoded anew, so a row that moves answers as before; and of vectors that lie in Parquet
files alone none is read.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from chiasm.index.segments import (
    CopiedTokens,
    CopiedVectors,
    Float16Vectors,
    ParquetVectors,
    Segment,
    Trained,
    fetch,
    proposal_column,
    rows_of_shards,
)


class StoredColumns:
    """The columns of one segment. trained: what its segments share, None of an exact column. Codes
    are in memory: their size and 12 bytes a row."""

    def __init__(self, segment: Segment, trained: Mapping[str, Trained | None]) -> None:
        self.segment = segment
        self._vectors = {column: segment.raw(column) for column in trained}
        self._coded = {
            column: None if shared is None else segment.coded(column, shared)
            for column, shared in trained.items()
        }
        self._has = {column: segment.has(column) for column in trained}
        self._ends = np.array([rows.stop for _, rows in rows_of_shards(segment)])

    def copied(self, column: str, rows: np.ndarray) -> CopiedVectors:
        """Of rows of one shard, (n,) int64."""
        vectors, coded, has = self._vectors[column], self._coded[column], self._has[column]
        has = np.ones(len(rows), bool) if has is None else has[rows]
        stored, digests = None, b""
        if isinstance(vectors, ParquetVectors):
            shard = int(np.searchsorted(self._ends, rows[0], side="right"))
            digests = vectors.digests_of(shard)
        else:
            stored = vectors.stored[rows]
        if coded is None:
            return CopiedVectors(has, stored, digests)
        lists, codes = coded
        return CopiedVectors(has, stored, digests, lists[rows[has]], codes[rows[has]])

    def tokens(self, column: str, width: int, rows: np.ndarray) -> CopiedTokens:
        """Of the same rows their tokens, of that width, and what proposes them."""
        stored, proposed = self.segment.tokens(column, width), proposal_column(column)
        fetch([*stored.wanted(rows), *self.segment.wanted_vectors(proposed, rows)])
        vectors = self.segment.vectors(proposed)
        assert isinstance(vectors, Float16Vectors)
        return CopiedTokens(stored.take(rows), vectors.stored[rows])

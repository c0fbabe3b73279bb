"""The rows of a built column by their exact vectors: what its answers are compared with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from chiasm.index.build.covered import READ_BYTES, leaves_of, ranges_of
from chiasm.index.build.measure import Case
from chiasm.index.build.memory import release_vectors
from chiasm.index.build.samples import Queries
from chiasm.index.query import (
    Allowed,
    ColumnIndex,
    Ranked,
    exact_top,
    rows_of_column,
    usable_rows,
    without_own,
)
from chiasm.index.segments import Segment, rows_of_shards
from chiasm.pipeline.collection import EmbeddingFile, find_embedding, vectors_of
from chiasm.pipeline.storage import Folder


class ExactRows:
    """folder: of the embeddings, which are read where the vectors of the segments are not exact;
    None to take those."""

    def __init__(self, index: ColumnIndex, folder: Folder | None) -> None:
        self.index = index
        self._folder = folder if index.plan.vectors == "int8" else None

    def cases(
        self, groups: Sequence[Queries], deepest: int, allowed: Allowed | None = None
    ) -> Iterator[Case]:
        """Several groups of queries with their exact answers, `deepest` without own rows. One pass
        over the rows answers all. allowed: the rows that may be found, by segment, None for all."""
        xq = np.concatenate([queries.vectors for queries in groups])
        positions: list[np.ndarray] = []
        scores, numbers = exact_top(self._blocks(allowed, positions), xq, deepest + 1)
        ranked = None
        if self._folder is not None:  # scores of results are not exact
            of_number = np.concatenate([*positions, [-1]])  # the last one for number -1
            ranked = Ranked(scores, of_number[numbers])
        first = 0
        for queries in groups:
            some = slice(first, first + len(queries))
            first = some.stop
            exact = without_own(scores[some], queries.own)
            yield Case(queries, exact, allowed, None if ranked is None else ranked[some])

    def _blocks(
        self, allowed: Allowed | None, positions: list[np.ndarray]
    ) -> Iterator[tuple[int, np.ndarray]]:
        """The rows that may be found, some at once: the number of the first, which counts where
        the Parquet files are read, and their vectors (n, D). Their positions are kept then."""
        if self._folder is None:
            for block in rows_of_column(self.index, allowed):
                yield block
                release_vectors(self.index)
            return
        count = 0
        for number, segment in enumerate(self.index.segments):
            usable = usable_rows(self.index, number, allowed)
            usable = np.ones(len(segment), bool) if usable is None else usable
            for vectors in self._exact(self._folder, segment, usable):
                yield count, vectors
                count += len(vectors)
            positions.append(self.index.starts[number] + np.flatnonzero(usable))

    def _exact(self, folder: Folder, segment: Segment, usable: np.ndarray) -> Iterator[np.ndarray]:
        """Of the usable rows, in order."""
        for shard, rows in rows_of_shards(segment):
            file, first = find_embedding(folder, shard.shard), rows.start
            if file is None or (file.edition, file.rows) != (shard.edition, shard.rows):
                # Embedded anew since: the copies are as good as there are.
                some = np.arange(rows.start, rows.stop)
                yield segment.raw(self.index.column).take(some[usable[some]])
                continue
            for vectors in _of_file(file, self.index.column):
                yield vectors[usable[first : first + len(vectors)]]
                first += len(vectors)


def _of_file(file: EmbeddingFile, column: str) -> Iterator[np.ndarray]:
    """The vectors of a Parquet file, (n, D) float16, some row groups at a time."""
    with file.open() as parquet:
        metadata = parquet.metadata
    sizes = [
        sum(leaf.total_uncompressed_size for leaf in leaves_of(metadata, number, [column]))
        for number in range(metadata.num_row_groups)
    ]
    for groups in ranges_of(sizes, READ_BYTES):
        yield vectors_of(file.read_groups([column], groups, metadata)[column])[0]

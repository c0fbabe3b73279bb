"""A collection open for searching: what stays between queries, loaded when first needed.

The live generation's segments are mapped column by column, the encoder named in the collection is
loaded at the first query that brings words or a picture. What does not belong together is refused
here: another encoder, an index of another encoder, an index older than its embeddings.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from chiasm.index.results import Query
from chiasm.index.segments import CatalogRow, Generation, Segment, open_current, stale_shards
from chiasm.pipeline.collection import Collection
from chiasm.pipeline.encoders import Encoder, load_encoder
from chiasm.pipeline.errors import CollectionError, StaleIndexError
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.storage import display_name


class OpenIndex:
    """A collection and its live generation. Safe to use from any thread."""

    def __init__(
        self, collection: Collection, generation: Generation, encoding: EncoderSettings
    ) -> None:
        self.collection, self.generation = collection, generation
        self.segments = generation.segments
        self.encoding = encoding
        self._encoder: Encoder | None = None
        self._loading = threading.Lock()

    def __len__(self) -> int:
        return self.generation.manifest.rows

    @property
    def dim(self) -> int:
        return self.collection.identity.dim

    @property
    def encoder(self) -> Encoder:
        """The encoder named in the collection; loaded once, refused if it is not the same one."""
        with self._loading:
            if self._encoder is None:
                identity = self.collection.identity
                encoder = load_encoder(identity.encoder, self.encoding)
                if encoder.fingerprint != identity.fingerprint:
                    raise CollectionError(
                        display_name(self.collection.folder.url),
                        expected=f"encoder {identity.encoder} ({identity.fingerprint[:12]})",
                        found=f"another of that name ({encoder.fingerprint[:12]})",
                        do="bring back its weights, or embed the shards again",
                    )
                self._encoder = encoder
            return self._encoder

    def ready_for(self, queries: Sequence[Query]) -> Encoder | None:
        """Open what the queries need and was not open yet; returns the encoder, None where every
        query brings its own vector."""
        for query in queries:
            self.nprobe_for(query)  # a column without an index is refused before anything is loaded
        # The encoder first: FAISS after torch shares its OpenMP runtime, see
        # index/faiss_runtime.py.
        encoder = self.encoder if any(query.vector is None for query in queries) else None
        for column in {query.column for query in queries}:
            for segment in self.segments:
                segment.index(column)
        return encoder

    def nprobe_for(self, query: Query) -> int:
        """Cells to look into, 0 where the column's index is exact; CollectionError without
        index."""
        self.require_column(query.column)
        made = self.generation.manifest.columns[query.column]
        return 0 if made.exact else min(made.cells, query.nprobe or made.nprobe)

    def require_column(self, column: str) -> None:
        """Raises CollectionError where a column has no index, and so no vectors of its own."""
        columns = self.generation.manifest.columns
        if column not in columns:
            raise CollectionError(
                f"column {column} of {display_name(self.collection.folder.url)}",
                expected="an index: there is one for " + ", ".join(columns),
                found="none",
                do="run chiasm index build",
            )

    def rows(self, positions: Iterable[int]) -> dict[int, CatalogRow]:
        """The catalog's rows at positions of the generation."""
        return {
            first + place: row
            for segment, first, here in self._by_segment(positions)
            for place, row in segment.catalog.rows(here).items()
        }

    def vectors(self, column: str, positions: Sequence[int]) -> np.ndarray:
        """The stored vectors of a column, in the order of the positions: (n, D) float32, zero
        where a row has none. CollectionError for a column without an index."""
        self.require_column(column)
        found = np.zeros((len(positions), self.dim), np.float32)
        at = {position: number for number, position in enumerate(positions)}
        for segment, first, here in self._by_segment(positions):
            found[[at[first + row] for row in here]] = segment.raw(column)[here]
        return found

    def _by_segment(self, positions: Iterable[int]) -> Iterator[tuple[Segment, int, list[int]]]:
        """Each segment that holds any of the positions, its first one, and its rows there, in
        order."""
        wanted = sorted(positions)
        first = 0
        for segment in self.segments:
            here = [position - first for position in wanted if 0 <= position - first < len(segment)]
            if here:
                yield segment, first, here
            first += len(segment)


def live_generation(collection: Collection, path: str | Path, allow_stale: bool) -> Generation:
    """The generation to search; raises CollectionError where there is none, StaleIndexError."""
    generation = open_current(collection.folder)
    if generation is None:
        raise CollectionError(
            str(path), expected="an index", found="none", do=f"run chiasm index build {path}"
        )
    if generation.manifest.fingerprint != collection.identity.fingerprint:
        raise CollectionError(
            str(path),
            expected=f"an index of encoder {collection.identity.encoder}",
            found=f"one of {generation.manifest.encoder}",
            do=f"run chiasm index build {path}",
        )
    if not allow_stale:
        _require_fresh(collection, generation, str(path))
    return generation


def _require_fresh(collection: Collection, generation: Generation, path: str) -> None:
    """Raises StaleIndexError where embeddings came, went or changed since the index was built."""
    lacking = Counter(stale_shards(collection.folder, generation.covered()).values())
    if lacking:
        told = ", ".join(f"{count} {kind}" for kind, count in sorted(lacking.items()))
        raise StaleIndexError(
            path,
            expected="an index of the embeddings beside it",
            found=f"an older one (shards: {told})",
            do=f"run chiasm index build {path}",
        )

"""The read path on one screen.

    Query -> encoder -> search -> results

`open_collection` checks that the collection, its index and its embeddings belong together, and
opens nothing big: segments are mapped and the encoder loaded when the first query needs them.
`retrieve` is the path itself, each stage timed. Nothing shared is changed by a query, so one
`Searcher` serves any number of threads.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from index.catalog import CatalogRow
from index.generations import Generation, behind, open_current
from index.queries import encode_queries
from index.results import Answer, PictureSource, Query, Result
from index.search import search
from pipeline.collection import Collection
from pipeline.encoders import Encoder, EncoderSettings, load_encoder
from pipeline.errors import CollectionError, StaleIndexError
from pipeline.ledger import Stopwatch
from pipeline.storage import shown


def retrieve(queries: Sequence[Query], collection: Searcher) -> list[Answer]:
    """Answer a batch of queries, in their order."""
    clock = Stopwatch()
    with clock.stage("load"):
        encoder = collection.ready_for(queries)
    with clock.stage("encode"):
        xq = encode_queries(queries, encoder, collection.dim)  # (Q, D) float32, unit rows
    with clock.stage("search"):
        hits = find(queries, xq, collection)  # for each query: score and position, best first
    with clock.stage("results"):
        results = results_of(hits, collection)
    share = {stage: seconds / max(1, len(queries)) for stage, seconds in clock.seconds.items()}
    return [Answer(query, found, share) for query, found in zip(queries, results, strict=True)]


def find(
    queries: Sequence[Query], xq: np.ndarray, collection: Searcher
) -> list[list[tuple[float, int]]]:
    """Search all queries that go into one column at once."""
    alike: dict[tuple[str, int], list[int]] = defaultdict(list)
    for number, query in enumerate(queries):
        alike[query.column, collection.nprobe_for(query)].append(number)
    hits: dict[int, list[tuple[float, int]]] = {}
    for (column, nprobe), numbers in alike.items():
        k = min(len(collection), max(queries[number].k for number in numbers))
        scores, positions = search(collection.segments, column, xq[numbers], k, nprobe)
        for number, near, where in zip(numbers, scores.tolist(), positions.tolist(), strict=True):
            pairs = [pair for pair in zip(near, where, strict=True) if pair[1] >= 0]
            hits[number] = pairs[: queries[number].k]
    return [hits[number] for number in range(len(queries))]


def results_of(
    hits: Sequence[Sequence[tuple[float, int]]], collection: Searcher
) -> list[tuple[Result, ...]]:
    """What people want to see of each hit, from the catalog; each row is read once."""
    rows = collection.rows({position for _, position in chain.from_iterable(hits)})
    return [
        tuple(_result(rank, score, rows[at]) for rank, (score, at) in enumerate(found, 1))
        for found in hits
    ]


def _result(rank: int, score: float, row: CatalogRow) -> Result:
    return Result(
        id=row.id,
        score=score,
        rank=rank,
        key=row.key,
        shard=row.shard,
        caption=row.caption,
        captions=row.captions,
        meta=row.meta,
        width=row.width,
        height=row.height,
        url=row.url,
        place=row.place,
        sha256=row.sha256,
    )


class Searcher:
    """A collection open for searching, as `open_collection` gives it. Safe to use from any
    thread."""

    def __init__(
        self, collection: Collection, generation: Generation, encoding: EncoderSettings
    ) -> None:
        self.collection, self.generation = collection, generation
        self.segments = generation.segments
        self._encoding = encoding
        self._encoder: Encoder | None = None
        self._loading = threading.Lock()

    def __len__(self) -> int:
        return self.generation.manifest.rows

    def search(
        self,
        text: str | None = None,
        *,
        image: PictureSource | None = None,
        column: str | None = None,
        k: int = 10,
    ) -> Answer:
        """The k rows nearest to some words, a picture, or both.

        image: a path, an encoded file, or a PIL picture. column: `image` finds pictures and is the
        default, `text` finds captions, `joint` pairs. Raises UsageError for what cannot be meant.
        """
        return self.search_many([Query(text, image, column=column or "image", k=k)])[0]

    def search_many(self, queries: Sequence[Query]) -> list[Answer]:
        """Many queries at once: one forward pass and one search for all that are alike."""
        return retrieve(queries, self)

    @property
    def dim(self) -> int:
        return self.collection.identity.dim

    @property
    def encoder(self) -> Encoder:
        """The encoder named in the collection; loaded once, refused if it is not the same one."""
        with self._loading:
            if self._encoder is None:
                identity = self.collection.identity
                encoder = load_encoder(identity.encoder, self._encoding)
                if encoder.fingerprint != identity.fingerprint:
                    raise CollectionError(
                        shown(self.collection.folder.url),
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
        columns = self.generation.manifest.columns
        if query.column not in columns:
            raise CollectionError(
                f"column {query.column} of {shown(self.collection.folder.url)}",
                expected="an index: there is one for " + ", ".join(columns),
                found="none",
                do="run chiasm index build",
            )
        made = columns[query.column]
        return 0 if made.exact else min(made.cells, query.nprobe or made.nprobe)

    def rows(self, positions: Iterable[int]) -> dict[int, CatalogRow]:
        """The catalog's rows at positions of the generation."""
        wanted = sorted(positions)
        found: dict[int, CatalogRow] = {}
        first = 0
        for segment in self.segments:
            here = [position - first for position in wanted if 0 <= position - first < len(segment)]
            if here:
                rows = segment.catalog.rows(here)
                found.update({first + place: row for place, row in rows.items()})
            first += len(segment)
        return found


def open_collection(
    path: str | Path, *, allow_stale: bool = False, encoding: EncoderSettings | None = None
) -> Searcher:
    """Open a collection for searching.

    allow_stale: search an index that does not cover the embeddings beside it. encoding: how the
    encoder runs. Raises CollectionError where there is no collection or no index, StaleIndexError.
    """
    collection = Collection.open(str(path))
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
        require_fresh(collection, generation, str(path))
    return Searcher(collection, generation, encoding or EncoderSettings())


def require_fresh(collection: Collection, generation: Generation, path: str) -> None:
    """Raises StaleIndexError where embeddings came, went or changed since the index was built."""
    lacking = Counter(behind(collection.folder, generation.covered()).values())
    if lacking:
        told = ", ".join(f"{count} {kind}" for kind, count in sorted(lacking.items()))
        raise StaleIndexError(
            path,
            expected="an index of the embeddings beside it",
            found=f"an older one (shards: {told})",
            do=f"run chiasm index build {path}",
        )

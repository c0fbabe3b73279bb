"""The read path on one screen.

    Query -> encoder -> search -> rerank -> results

`retrieve` is the path, each stage timed. `open_collection` gives a `Searcher`, which holds what
stays between queries (index/query/open_index.py) and is what programs use. Nothing shared is
changed by a query, so one `Searcher` serves any number of threads, and a query's answer does not
depend on its batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from chiasm.index.query import Candidate, OpenIndex, encode_queries, live_generation, rerank, search
from chiasm.index.results import Answer, PictureSource, Query, Rerank, Result
from chiasm.index.segments import CatalogRow
from chiasm.pipeline.collection import Collection
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.timing import Stopwatch


def retrieve(queries: Sequence[Query], collection: OpenIndex) -> list[Answer]:
    """Answer a batch of queries, in their order."""
    clock = Stopwatch()
    with clock.stage("load"):
        encoder = collection.ready_for(queries)
    with clock.stage("encode"):
        xq = encode_queries(queries, encoder, collection.dim)  # (Q, D) float32, unit rows
    with clock.stage("search"):
        hits = find(queries, xq, collection)  # for each query candidates, best first
    with clock.stage("rerank"):
        hits = [
            rerank(query, vector, found, collection)[: query.k]
            for query, vector, found in zip(queries, xq, hits, strict=True)
        ]
    with clock.stage("results"):
        results = results_of(hits, collection)
    share = {stage: seconds / max(1, len(queries)) for stage, seconds in clock.seconds.items()}
    return [Answer(query, found, share) for query, found in zip(queries, results, strict=True)]


def find(queries: Sequence[Query], xq: np.ndarray, collection: OpenIndex) -> list[list[Candidate]]:
    """Search at once all queries that differ in nothing but their vector."""
    alike: dict[tuple[str, int, int], list[int]] = defaultdict(list)
    for number, query in enumerate(queries):
        k = min(query.candidates, len(collection))
        alike[query.column, k, collection.nprobe_for(query)].append(number)
    hits: dict[int, list[Candidate]] = {}
    for (column, k, nprobe), numbers in alike.items():
        scores, positions = search(collection.segments, column, xq[numbers], k, nprobe)
        for number, near, where in zip(numbers, scores.tolist(), positions.tolist(), strict=True):
            hits[number] = [
                Candidate(position, score, {"search": score})
                for score, position in zip(near, where, strict=True)
                if position >= 0
            ]
    return [hits[number] for number in range(len(queries))]


def results_of(
    hits: Sequence[Sequence[Candidate]], collection: OpenIndex
) -> list[tuple[Result, ...]]:
    """What people want to see of each hit, from the catalog; each row is read once."""
    rows = collection.rows({found.position for found in chain.from_iterable(hits)})
    return [
        tuple(_result(rank, hit, rows[hit.position]) for rank, hit in enumerate(found, 1))
        for found in hits
    ]


def _result(rank: int, hit: Candidate, row: CatalogRow) -> Result:
    return Result(
        id=row.id,
        score=hit.score,
        scores=hit.scores,
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


class Searcher(OpenIndex):
    """A collection to be searched, as `open_collection` gives it."""

    def search(
        self,
        text: str | None = None,
        *,
        image: PictureSource | None = None,
        column: str | None = None,
        k: int = 10,
        rerank: Sequence[str] = (),
    ) -> Answer:
        """The k rows nearest to some words, a picture, or both.

        image: a path, an encoded file, or a PIL picture. column: `image` finds pictures and is the
        default, `text` finds captions, `joint` pairs. rerank: stages such as `match:20`, see
        index/query/rerank.py. Raises UsageError for what cannot be meant.
        """
        stages = tuple(Rerank.parse(stage) for stage in rerank)
        query = Query(text, image, column=column or "image", k=k, rerank=stages)
        return self.search_many([query])[0]

    def search_many(self, queries: Sequence[Query]) -> list[Answer]:
        """Many queries at once: one forward pass and one search for all that are alike."""
        return retrieve(queries, self)


def open_collection(
    path: str | Path, *, allow_stale: bool = False, encoding: EncoderSettings | None = None
) -> Searcher:
    """Open a collection for searching.

    allow_stale: search an index that does not cover the embeddings beside it. encoding: how the
    encoder runs. Raises CollectionError where there is no collection or no index, StaleIndexError.
    """
    collection = Collection.open(str(path))
    generation = live_generation(collection, path, allow_stale)
    return Searcher(collection, generation, encoding or EncoderSettings())

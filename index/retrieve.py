"""The read path on one screen.

    Query -> encoder -> search -> keywords -> rerank -> results

`retrieve_from` is the path, each stage timed. `open_collection` gives a `Searcher`, which holds
what stays between queries (index/query/open_index.py) and is what programs use. A query changes
nothing shared, so one `Searcher` serves any number of threads, and a query's answer does not depend
on its batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from chiasm.index.queries import PictureSource, Query, RerankStage
from chiasm.index.query import (
    OpenIndex,
    add_keywords,
    check_stages,
    encode_queries,
    live_generation,
    open_keywords,
    p_absent,
    require_words,
    rerank,
    search,
)
from chiasm.index.results import Answer, Hit, Result
from chiasm.index.segments import SegmentGone
from chiasm.pipeline.collection import Collection
from chiasm.pipeline.errors import SourceError
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.storage import display_name
from chiasm.pipeline.timing import Stopwatch


def retrieve(queries: Sequence[Query], collection: OpenIndex) -> list[Answer]:
    """Answer a batch of queries, in their order.

    Where a sweep has removed files of the generation that is open, they are answered from the one
    that is live by now; where a shard is gone from its place, from where it was relocated to."""
    check_stages(stage for query in queries for stage in query.stages)
    for query in queries:
        if query.calibrated:
            require_words(query)
    while True:
        view = collection.view()
        try:
            return retrieve_from(queries, view)
        except SegmentGone:
            if not collection.reopen(view.generation):
                raise
        except SourceError:
            if not collection.look_for_relocations():
                raise


def retrieve_from(queries: Sequence[Query], collection: OpenIndex) -> list[Answer]:
    """Answer a batch of queries from one generation."""
    clock = Stopwatch()
    with clock.stage("load"):
        open_keywords(queries, collection)
        encoder = collection.prepare(queries)
    with clock.stage("encode"):
        xq = encode_queries(queries, encoder, collection.dim)  # (Q, D) float32, unit rows
    with clock.stage("search"):
        hits = search_queries(queries, xq, collection)  # for each query, best first
    absent: list[float | None] = [None] * len(queries)
    for number, query in enumerate(queries):
        if query.calibrated:
            with clock.stage("calibrate"):
                absent[number] = p_absent(query, xq[number], hits[number], collection)
    if any(query.hybrid for query in queries):
        with clock.stage("keywords"):
            hits = add_keywords(queries, xq, hits, collection)
    with clock.stage("rerank"):
        hits = [
            rerank(query, vector, candidates, collection)[: query.k]
            for query, vector, candidates in zip(queries, xq, hits, strict=True)
        ]
    with clock.stage("results"):
        results = read_results(hits, collection)
    share = {stage: seconds / max(1, len(queries)) for stage, seconds in clock.seconds.items()}
    return [
        Answer(query, ranked, share, p)
        for query, ranked, p in zip(queries, results, absent, strict=True)
    ]


def search_queries(
    queries: Sequence[Query], xq: np.ndarray, collection: OpenIndex
) -> list[list[Hit]]:
    """The hits of each query; those that differ in nothing but their vector are searched at
    once."""
    groups: dict[tuple[str, int, int], list[int]] = defaultdict(list)
    for number, query in enumerate(queries):
        k = min(query.candidates, len(collection))
        nprobe = collection.lists_to_scan(query.column, query.nprobe)
        groups[query.column, k, nprobe].append(number)
    hits: dict[int, list[Hit]] = {}
    for (column, k, nprobe), numbers in groups.items():
        scores, positions = search(collection.column(column), xq[numbers], k, nprobe)
        for number, row_scores, row_positions in zip(
            numbers, scores.tolist(), positions.tolist(), strict=True
        ):
            hits[number] = [
                Hit(position, {"search": score})
                for score, position in zip(row_scores, row_positions, strict=True)
                if position >= 0
            ]
    return [hits[number] for number in range(len(queries))]


def read_results(hits: Sequence[Sequence[Hit]], collection: OpenIndex) -> list[tuple[Result, ...]]:
    """The hits of each query with their rows of the catalog; each row is read once."""
    rows = collection.rows({hit.position for hit in chain.from_iterable(hits)})
    return [
        tuple(Result(rank, hit, rows[hit.position]) for rank, hit in enumerate(ranked, 1))
        for ranked in hits
    ]


class Searcher(OpenIndex):
    """A collection to be searched, as `open_collection` gives it."""

    def __repr__(self) -> str:
        where = display_name(self.collection.folder.url)
        columns = ", ".join(self.generation.manifest.columns)
        encoder = self.collection.identity.encoder
        return f"<Searcher {where}: encoder {encoder}, {len(self):,} rows, columns {columns}>"

    def search(
        self,
        text: str | None = None,
        *,
        image: PictureSource | None = None,
        column: str | None = None,
        k: int = 10,
        rerank: Sequence[RerankStage | str] | str = (),
        hybrid: bool = False,
    ) -> Answer:
        """The k rows nearest to a text, a picture, or both.

        image: a path, a URL of http, https or s3, an encoded file as bytes, a PIL picture, or an
        array of uint8 (H, W, 3) or (H, W). column: `image` finds pictures and is the default,
        `text` finds captions, `joint` pairs. rerank: one stage such as "match:20", or a list of
        them, see index/query/rerank.py. hybrid: find captions that have the text's words too, see
        index/query/keyword.py. Raises UsageError for values and TypeError for types that
        cannot be used, SourceError for a URL that cannot be read.
        """
        query = Query(text, image, column=column or "image", k=k, rerank=rerank, hybrid=hybrid)
        return self.search_many([query])[0]

    def search_many(self, queries: Sequence[Query | str]) -> list[Answer]:
        """Many queries at once, a string being a query for pictures: one forward pass, and one
        search for all that differ in nothing but their vector."""
        if isinstance(queries, str):
            raise TypeError("queries: expected a list of texts or queries, found one str")
        return retrieve(
            [Query(query) if isinstance(query, str) else query for query in queries], self
        )


def open_collection(
    path: str | Path, *, allow_stale: bool = False, encoding: EncoderSettings | None = None
) -> Searcher:
    """Open a collection for searching.

    allow_stale: search an index that does not cover the embeddings beside it. encoding: how the
    encoder runs. Raises CollectionError where there is no collection or no index, StaleIndexError.
    """
    collection = Collection.open(str(path))
    generation = live_generation(collection, allow_stale)
    return Searcher(collection, generation, encoding or EncoderSettings())

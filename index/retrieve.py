"""The read path on one screen.

    Query -> encoder -> search -> keywords -> rerank -> fold and diversify -> results

`retrieve_from` is the path, each stage timed. `open_collection` gives a `Searcher`, which holds
what stays between queries (index/query/open_index.py) and is what programs use. A query changes
nothing shared, so one `Searcher` serves any number of threads. What is found for a query's vector
does not depend on its batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from chiasm.index.hits import Explanation, Hit, Trace
from chiasm.index.queries import PictureSource, Query, RerankStage
from chiasm.index.query import (
    OpenIndex,
    Search,
    add_keywords,
    check_stages,
    diversify,
    encode_queries,
    explain_search,
    open_keywords,
    open_live,
    p_absent,
    require_words,
    rerank,
    search_filtered,
)
from chiasm.index.results import Answer, Result
from chiasm.index.segments import SegmentGone
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


def retrieve_from(
    queries: Sequence[Query], collection: OpenIndex, vectors: np.ndarray | None = None
) -> list[Answer]:
    """Answer a batch of queries from one generation. vectors: those of the queries, (Q, D) float32,
    where they were made before; the encoder is then loaded only for stages that need it."""
    clock = Stopwatch()
    with clock.stage("load"):
        open_keywords(queries, collection)
        encoder = collection.prepare(queries, encode=vectors is None)
    with clock.stage("encode"):
        xq = vectors  # (Q, D) float32, unit rows
        if xq is None:
            xq = encode_queries(queries, encoder, collection.dim)
    with clock.stage("search"):
        hits, ways = search_queries(queries, xq, collection)  # for each query, best first
    searches = [[way] for way in ways]
    absent: list[float | None] = [None] * len(queries)
    for number, query in enumerate(queries):
        if query.calibrated:
            with clock.stage("calibrate"):
                absent[number] = p_absent(query, hits[number], collection)
    if any(query.hybrid for query in queries):
        with clock.stage("keywords"):
            hits = fuse_keywords(queries, xq, hits, collection)
    with clock.stage("rerank"):
        hits = rerank(queries, xq, hits, collection)
    if any(query.dedup is not None or query.diversity for query in queries):
        with clock.stage("diversify"):

            def search_more(some: Sequence[int], counts: Sequence[int]) -> list[list[Hit]]:
                wanted = [queries[number] for number in some]
                found, ways = search_queries(wanted, xq[some], collection, counts)
                for number, way in zip(some, ways, strict=True):
                    searches[number].append(way)
                return found

            hits = diversify(queries, hits, collection, search_more)
    with clock.stage("results"):
        wanted = [ranked[: query.k] for query, ranked in zip(queries, hits, strict=True)]
        results = read_results(wanted, collection)
    share = {stage: seconds / max(1, len(queries)) for stage, seconds in clock.seconds.items()}
    traces = [
        Trace(collection.generation.number, xq[number], tuple(searches[number]), tuple(ranked))
        for number, ranked in enumerate(hits)
    ]
    return [
        Answer(query, ranked, share, p, trace)
        for query, ranked, p, trace in zip(queries, results, absent, traces, strict=True)
    ]


def search_queries(
    queries: Sequence[Query],
    xq: np.ndarray,
    collection: OpenIndex,
    counts: Sequence[int] | None = None,
) -> tuple[list[list[Hit]], list[Explanation]]:
    """The hits of each query, and the way in which they were found; queries that differ in nothing
    but their vector are searched at once. counts: how many hits of each query, `Query.candidates`
    by default."""
    groups: dict[Search, list[int]] = defaultdict(list)
    for number, query in enumerate(queries):
        k = min(counts[number] if counts else query.candidates, len(collection))
        wanted = None if query.nprobe is None else int(query.nprobe)
        search = Search(query.column, query.kind, k, wanted, query.where)
        groups[search].append(number)
    hits: dict[int, list[Hit]] = {}
    ways: dict[int, Explanation] = {}
    for search, numbers in groups.items():
        index, allowed = collection.column(search.column), collection.allowed(search.where)
        nprobe = collection.lists_to_scan(search.column, search.nprobe, search.kind)
        ways |= dict.fromkeys(
            numbers, explain_search(index, search.k, nprobe, allowed, len(numbers))
        )
        some = xq[numbers]
        scores, positions = search_filtered(index, some, search.k, nprobe, allowed)
        if counts is None:  # else these queries were searched before
            collection.audits.recent.add(some, *search)
        for number, row_scores, row_positions in zip(
            numbers, scores.tolist(), positions.tolist(), strict=True
        ):
            hits[number] = [
                Hit(position, {"search": score})
                for score, position in zip(row_scores, row_positions, strict=True)
                if position >= 0
            ]
    every = range(len(queries))
    return [hits[number] for number in every], [ways[number] for number in every]


def fuse_keywords(
    queries: Sequence[Query], xq: np.ndarray, hits: list[list[Hit]], collection: OpenIndex
) -> list[list[Hit]]:
    """The hits of each query, with those of its words; queries of one filter at once."""
    fused = list(hits)
    for where in dict.fromkeys(query.where for query in queries if query.hybrid):
        numbers = [number for number, query in enumerate(queries) if query.where == where]
        some = [queries[number] for number in numbers], xq[numbers], [hits[n] for n in numbers]
        added = add_keywords(*some, collection, collection.allowed(where))
        for number, found in zip(numbers, added, strict=True):
            fused[number] = found
    return fused


def read_results(hits: Sequence[Sequence[Hit]], collection: OpenIndex) -> list[tuple[Result, ...]]:
    """The hits of each query with their rows of the catalog; each row is read once."""
    every_hit = list(chain.from_iterable(hits))
    rows = collection.rows({p for hit in every_hit for p in (hit.position, *hit.folded)})
    return [
        tuple(
            Result(rank, hit, rows[hit.position], tuple(rows[p].id for p in hit.folded))
            for rank, hit in enumerate(ranked, 1)
        )
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
        dedup: float | None = None,
        diversity: float = 0.0,
        where: str | None = None,
    ) -> Answer:
        """The k rows nearest to a text, a picture, or both.

        image: a path, a URL of http, https or s3, an encoded file as bytes, a PIL picture, or an
        array of uint8 (H, W, 3) or (H, W). column: `image` finds pictures and is the default,
        `text` finds captions, `joint` pairs. rerank: one stage such as "match:20", or a list of
        them, see index/query/rerank.py. hybrid: find captions that have the text's words too, see
        index/query/keyword.py. dedup: the cosine from which on hits are folded under a better one,
        such as 0.97. diversity: from 0 to 1, see index/query/diversify.py. where: a condition in
        SQL that hits fulfil, such as "width > 512 AND meta.license = 'cc0'", see
        index/query/filters.py. Weighted queries are `Query(terms=[...])` for `search_many`. Raises
        UsageError for values and TypeError for types that cannot be used, SourceError for a URL
        that cannot be read.
        """
        if isinstance(text, list | tuple):
            raise TypeError(
                f"text: expected str, found {type(text).__name__}; search_many([...]) answers "
                "several texts or queries at once"
            )
        query = Query(
            text,
            image,
            column=column or "image",
            k=k,
            rerank=rerank,
            hybrid=hybrid,
            dedup=dedup,
            diversity=diversity,
            where=where,
        )
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
    path: str | Path,
    *,
    allow_stale: bool = False,
    encoding: EncoderSettings | None = None,
    encoder: str | None = None,
) -> Searcher:
    """Open a collection for searching.

    allow_stale: search an index that does not cover the embeddings beside it. encoding: how the
    encoder runs. encoder: where its weights are now, such as "pocket:DIR", None for the name that
    the collection has; other weights are refused by the first query that needs them. Raises
    CollectionError where there is no collection or no index, StaleIndexError.
    """
    collection, generation, relocated = open_live(str(path), allow_stale, encoder)
    return Searcher(collection, generation, encoding or EncoderSettings(), relocated)

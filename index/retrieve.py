"""The read path on one screen.

    Query -> encoder -> search -> keywords -> rerank -> fold and diversify -> results

`retrieve_from` is the path, each stage timed. `open_collection` gives a `Searcher`, which holds
what stays between queries (index/query/open_index.py) and is what programs use. A query changes
nothing shared, so one `Searcher` serves any number of threads. What is found for a query's vector
does not depend on its batch.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from chiasm.index.hits import Explanation, Hit, Trace
from chiasm.index.queries import MemberSource, PictureSource, Query, RerankStage
from chiasm.index.query import (
    OpenIndex,
    QueryTokens,
    Search,
    add_keywords,
    check_stages,
    diversify,
    encode_with_tokens,
    explain_search,
    open_keywords,
    open_live,
    p_absent,
    require_single_vectors,
    require_words,
    rerank,
    search_filtered,
    search_tokens,
    searches_tokens,
)
from chiasm.index.results import Answer, Result
from chiasm.index.segments import SegmentGone
from chiasm.pipeline.errors import SourceError
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.records import SOUND
from chiasm.pipeline.storage import display_name
from chiasm.pipeline.timing import Stopwatch

LOG = logging.getLogger(__name__)

MOST_SHOWN = 80  # characters of a query in a message


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
    xq, tokens = encode(queries, collection, vectors, clock)
    with clock.stage("search"):
        # for each query, best first
        hits, ways = search_queries(queries, xq, collection, tokens=tokens)
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
                parts = None if tokens is None else [tokens[number] for number in some]
                found, ways = search_queries(wanted, xq[some], collection, counts, parts)
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


def _warn_of_cut(name: str, tokens: int) -> None:
    LOG.warning(
        "%s is longer than the encoder takes: its last %d tokens are not read",
        name if len(name) <= MOST_SHOWN else f"{name[:MOST_SHOWN]}...",
        tokens,
    )


def encode(
    queries: Sequence[Query], collection: OpenIndex, vectors: np.ndarray | None, clock: Stopwatch
) -> tuple[np.ndarray, Sequence[QueryTokens | None] | None]:
    """The vectors of the queries (Q, D) float32, unit rows, and of those that have some their
    tokens; what a search of them needs is loaded. vectors: where they were made before; the tokens
    of columns that are searched by them are made in any case."""
    with clock.stage("load"):
        for query in queries:
            require_single_vectors(query, collection)
        open_keywords(queries, collection)
        by_tokens = any(searches_tokens(collection, query.column) for query in queries)
        encoder = collection.prepare(queries, encode=vectors is None or by_tokens)
    with clock.stage("encode"):
        if vectors is not None and not by_tokens:
            return vectors, None
        xq, tokens = encode_with_tokens(queries, encoder, collection.dim, report_cut=_warn_of_cut)
        return (xq if vectors is None else vectors), tokens


def search_queries(
    queries: Sequence[Query],
    xq: np.ndarray,
    collection: OpenIndex,
    counts: Sequence[int] | None = None,
    tokens: Sequence[QueryTokens | None] | None = None,
) -> tuple[list[list[Hit]], list[Explanation]]:
    """The hits of each query, and the way in which they were found; queries that differ in nothing
    but their vector are searched at once. counts: how many hits of each query, `Query.candidates`
    by default. tokens: those of each query that has some, by which columns with tokens are searched
    (index/query/late_interaction.py)."""
    groups: dict[Search, list[int]] = defaultdict(list)
    for number, query in enumerate(queries):
        k = min(counts[number] if counts else query.candidates, len(collection))
        wanted = None if query.nprobe is None else int(query.nprobe)
        search = Search(query.column, query.kind, k, wanted, query.where)
        groups[search].append(number)
    hits: dict[int, list[Hit]] = {}
    ways: dict[int, Explanation] = {}
    if tokens is not None:
        take_token_searches(groups, tokens, collection, hits, ways)
    for search, numbers in groups.items():
        if not numbers:
            continue
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


def take_token_searches(
    groups: dict[Search, list[int]],
    tokens: Sequence[QueryTokens | None],
    collection: OpenIndex,
    hits: dict[int, list[Hit]],
    ways: dict[int, Explanation],
) -> None:
    """Search by tokens for those of the queries that have some, in columns that have them; these
    queries leave their groups, their hits and ways are put into `hits` and `ways`."""
    for search, numbers in groups.items():
        if searches_tokens(collection, search.column):
            own = {number: parts for number in numbers if (parts := tokens[number]) is not None}
            groups[search] = [number for number in numbers if number not in own]
            if own:
                found, way = search_tokens(
                    list(own.values()), search.k, collection, search.column, search.where
                )
                hits |= zip(own, found, strict=True)
                ways |= dict.fromkeys(own, way)


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
        sound: MemberSource | None = None,
        members: Mapping[str, MemberSource] | None = None,
        column: str | None = None,
        k: int = 10,
        rerank: Sequence[RerankStage | str] | str = (),
        hybrid: bool = False,
        dedup: float | None = None,
        diversity: float = 0.0,
        where: str | None = None,
    ) -> Answer:
        """The k rows nearest to a text, a picture, a file of another modality, or several of them.

        image: a path, a URL of http, https or s3, an encoded file as bytes, a PIL picture, or an
        array of uint8 (H, W, 3) or (H, W). sound: the file of one, as a path, a URL or bytes.
        members: the same by the name of any modality beyond these, as in {"array": path}. column:
        `image` finds pictures, `text` captions, `joint` pairs, the name of another modality its
        members; by default `default_column`. rerank: one stage such as "match:20", or a list of
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
            column=column or self.default_column,
            k=k,
            rerank=rerank,
            hybrid=hybrid,
            dedup=dedup,
            diversity=diversity,
            where=where,
            members={**({} if sound is None else {SOUND: sound}), **(members or {})},
        )
        return self.search_many([query])[0]

    def search_many(self, queries: Sequence[Query | str]) -> list[Answer]:
        """Many queries at once, a string being a query of `default_column`: one forward pass, and
        one search for all that differ in nothing but their vector."""
        if isinstance(queries, str):
            raise TypeError("queries: expected a list of texts or queries, found one str")
        column = self.default_column
        return retrieve(
            [Query(one, column=column) if isinstance(one, str) else one for one in queries], self
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

"""Hits -> fewer that are alike: near duplicates folded, then maximal marginal relevance.

Both compare the stored vectors of the column that was searched. Each query is treated alone, so its
answer does not depend on its batch; only the search for more candidates is shared.

The cost is reading the vectors of the candidates: at most MAX_CANDIDATES rows a query where most of
them are near duplicates, else some tens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import takewhile

import numpy as np

from chiasm.index.hits import Hit
from chiasm.index.queries import Query
from chiasm.index.query.open_index import OpenIndex
from chiasm.pipeline.encoders import unit

GROWTH = 4  # so many times the candidates are searched for where too few are distinct
BLOCK = 256  # hits compared with each other at once
MAX_CANDIDATES = 10_000  # of one query that folds, unless it wants more
ROUNDING = 1e-6  # two unit vectors in float32 that are the same have a cosine of 1 - 1e-7

# The hits of some queries, by number, with so many candidates a query: lists as the search gives.
SearchMore = Callable[[Sequence[int], Sequence[int]], Sequence[list[Hit]]]


def diversify(
    queries: Sequence[Query],
    hits: Sequence[list[Hit]],
    collection: OpenIndex,
    search_more: SearchMore,
) -> list[list[Hit]]:
    """The hits of each query, folded where it has `dedup` and reordered where it has `diversity`.

    hits: as the search or the last stage of reranking left them, `Query.candidates` or fewer where
    the index has no more. search_more: called where folding leaves fewer than `Query.distinct`.
    """
    ranked = fold_duplicates(queries, hits, collection, search_more)
    return [
        marginal_relevance(query, own, collection) if query.diversity else own
        for query, own in zip(queries, ranked, strict=True)
    ]


def fold_duplicates(
    queries: Sequence[Query],
    hits: Sequence[list[Hit]],
    collection: OpenIndex,
    search_more: SearchMore,
) -> list[list[Hit]]:
    """Near duplicates of better hits folded under the best one that they are like, its `folded`.

    More candidates are searched for, GROWTH times as many each time, until `Query.distinct` hits
    are apart, the index has no more, or MAX_CANDIDATES were compared. What a later search gives
    first comes behind what was there: it was not reranked.
    """
    folds = {
        number: Fold(query, collection)
        for number, query in enumerate(queries)
        if query.dedup is not None
    }
    counts = {number: min(queries[number].candidates, len(collection)) for number in folds}
    for number, fold in folds.items():
        fold.add(hits[number])
    while True:
        short = [
            number
            for number, fold in folds.items()
            if len(fold.kept) < queries[number].distinct
            and fold.compared >= counts[number]  # else the index has no more
            and counts[number] < min(MAX_CANDIDATES, len(collection))
        ]
        if not short:
            break
        for number in short:
            counts[number] = min(GROWTH * counts[number], MAX_CANDIDATES, len(collection))
        wider = search_more(short, [counts[number] for number in short])
        for number, candidates in zip(short, wider, strict=True):
            folds[number].add(candidates)
    return [folds[number].hits if number in folds else list(own) for number, own in enumerate(hits)]


class Fold:
    """Distinct hits of one query, and what is folded under each of them."""

    def __init__(self, query: Query, collection: OpenIndex) -> None:
        assert query.dedup is not None
        self.kept: list[Hit] = []
        self._least = query.dedup - ROUNDING
        self._column, self._collection = query.column, collection
        self._vectors = np.empty((0, collection.dim), np.float32)  # of those kept
        self._folded: list[list[int]] = []
        self._seen: set[int] = set()

    @property
    def compared(self) -> int:
        """How many hits were given."""
        return len(self._seen)

    @property
    def hits(self) -> list[Hit]:
        return [
            replace(hit, folded=tuple(positions))
            for hit, positions in zip(self.kept, self._folded, strict=True)
        ]

    def add(self, hits: Sequence[Hit]) -> None:
        """Take more hits, best first; those that were given before are passed over."""
        new = [hit for hit in hits if hit.position not in self._seen]
        self._seen.update(hit.position for hit in new)
        vectors = self._collection.vectors(self._column, [hit.position for hit in new])
        for start in range(0, len(new), BLOCK):
            self._add(new[start : start + BLOCK], unit(vectors[start : start + BLOCK]))

    def _add(self, hits: Sequence[Hit], vectors: np.ndarray) -> None:
        like_before = vectors @ self._vectors.T >= self._least  # (hits, kept before)
        like_here = vectors @ vectors.T >= self._least
        before = len(self.kept)
        apart: list[int] = []  # the rows that are kept
        for row, hit in enumerate(hits):
            same = np.flatnonzero(like_before[row])
            if not len(same):
                same = before + np.flatnonzero(like_here[row, apart])
            if len(same):
                self._folded[same[0]].append(hit.position)
            else:
                apart.append(row)
                self.kept.append(hit)
                self._folded.append([])
        self._vectors = np.concatenate((self._vectors, vectors[apart]))


def marginal_relevance(query: Query, hits: Sequence[Hit], collection: OpenIndex) -> list[Hit]:
    """The hits, those first that are relevant and unlike the ones before them.

    Maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998): the next hit is the one of
    the greatest (1 - d) relevance - d max(cosine with a hit before), d = `query.diversity`. Of
    equal ones the better hit comes first, and 0 leaves the order as it is.

    Relevance is the score, scaled linearly so that those of the pool are from 0 to 1: cosines of
    texts with pictures are a third of those of pictures with each other, and stages of reranking
    have scales of their own. The pool is the first `query.distinct` hits, or fewer where the last
    stage scored fewer; the hits behind it stay where they are.
    """
    first = hits[: query.distinct]
    pool = list(takewhile(lambda hit: _scale(hit) == _scale(first[0]), first))
    if len(pool) < 2:
        return list(hits)
    scores = np.array([hit.score for hit in pool])
    low, high = scores.min(), scores.max()
    relevance = (scores - low) / (high - low) if high > low else np.zeros(len(pool))
    vectors = unit(collection.vectors(query.column, [hit.position for hit in pool]))
    redundancy = np.full(len(pool), -np.inf)
    waiting = np.ones(len(pool), bool)
    order: list[int] = []
    for _ in range(min(query.k, len(pool))):
        value = (1 - query.diversity) * relevance
        if order:
            redundancy = np.maximum(redundancy, vectors @ vectors[order[-1]])
            value = value - query.diversity * redundancy
        best = int(np.argmax(np.where(waiting, value, -np.inf)))
        order.append(best)
        waiting[best] = False
    order += np.flatnonzero(waiting).tolist()
    return [pool[number] for number in order] + list(hits[len(pool) :])


def _scale(hit: Hit) -> tuple[str, int | None]:
    """What gave the hit its score; scores of one stage alone can be compared."""
    return hit.scored_by, hit.rerank_step

"""Words -> rows whose captions have them, by BM25 over all segments; fused with what vectors found.

The score of a row is BM25 as Lucene computes it (Robertson and Zaragoza, 2009; Kamphuis et al.,
2020): for each term of the query, weight * idf * (k1 + 1) tf / (tf + k1 (1 - b + b length / mean)),
where idf = ln(1 + (N - n + 0.5) / (n + 0.5)). N, n and the mean are those of all rows of the
generation that are not deleted and have words: a score depends neither on how rows are cut into
segments nor on a filter, and rows that were deleted leave no trace. Ties are ordered by position.

Fused by reciprocal rank (Cormack et al., 2009): a row gets 1 / (60 + rank) by each of the two
lists that it is in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chiasm.index.hits import Hit
from chiasm.index.queries import Query
from chiasm.index.query.open_index import OpenIndex
from chiasm.index.query.search import Allowed
from chiasm.index.segments import Keywords, query_terms
from chiasm.pipeline.errors import UsageError

K1, B = 1.2, 0.75  # Lucene's; on captions others find no more (benchmarks/hybrid.py)
RANK_CONSTANT = 60  # of Cormack et al.
# Of the keywords' list beside 1 for the vectors'. Less finds more sentences by vectors of captions,
# and less of everything else: pictures, other languages, rare words (benchmarks/hybrid.py).
KEYWORD_WEIGHT = 1.0

Rows = Sequence[np.ndarray | None]  # of each segment (rows,) bool, None where none is left out


def open_keywords(queries: Sequence[Query], collection: OpenIndex) -> None:
    """Open what hybrid queries need. Raises UsageError for one without words, CollectionError for
    an index without keywords."""
    hybrid = [query for query in queries if query.hybrid]
    for query in hybrid:
        _terms(query.words)
    for segment in collection.segments if hybrid else ():
        _ = segment.keywords


def add_keywords(
    queries: Sequence[Query],
    xq: np.ndarray,
    hits: Sequence[list[Hit]],
    collection: OpenIndex,
    allowed: Allowed | None = None,
) -> list[list[Hit]]:
    """The hits of each query by its vector, those of hybrid queries fused with the rows that have
    their words. xq: (Q, D) float32, the queries' vectors. allowed: the rows that may be found."""
    numbers = [number for number, query in enumerate(queries) if query.hybrid]
    fused = list(hits)
    scores, positions = search_keywords(
        [segment.keywords for segment in collection.segments],
        [queries[number].words for number in numbers],
        max((queries[number].candidates for number in numbers), default=1),
        [segment.deleted() for segment in collection.segments],
        allowed,
    )
    for place, number in enumerate(numbers):
        query = queries[number]
        found = positions[place, : query.candidates]
        found = found[found >= 0]
        known = {hit.position: hit.scores["search"] for hit in hits[number]}
        new = [position for position in found.tolist() if position not in known]
        vectors = collection.vectors(query.column, new)  # (n, D), zero where a row has none
        known |= {
            position: float(vector @ xq[number])
            for position, vector in zip(new, vectors, strict=True)
            if vector.any()
        }
        by_words = [
            Hit(position, {"search": known[position]} if position in known else {}).scored(
                "keywords", score
            )
            for position, score in zip(found.tolist(), scores[place].tolist(), strict=False)
        ]
        fused[number] = fuse(hits[number], by_words)
    return fused


def _terms(text: str) -> dict[str, float]:
    terms = query_terms(text)
    if not terms:
        raise UsageError(
            "hybrid",
            expected="words to find in captions",
            found=f"{text!r}",
            do="search without hybrid",
        )
    return terms


def search_keywords(
    segments: Sequence[Keywords],
    texts: Sequence[str],
    k: int,
    deleted: Rows,
    allowed: Allowed | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k rows of each text with the best scores: (Q, n) float32, best first, and their positions
    (Q, n) int64; -inf and -1 where fewer rows have any of its words. n is k, or the number of rows
    where that is less.

    deleted: the rows of each segment that count for nothing. allowed: those that may be found.
    Raises UsageError for a text without words.
    """
    alive = [None if rows is None else ~rows for rows in deleted]
    corpus = _Corpus.of(segments, alive)
    usable = alive if allowed is None else list(map(_both, allowed, alive))
    k = min(k, sum(map(len, segments)))
    scores = np.full((len(texts), k), -np.inf, dtype=np.float32)
    positions = np.full((len(texts), k), -1, dtype=np.int64)
    for number, text in enumerate(texts):
        found = _best_rows(segments, corpus, _terms(text), k, alive, usable)
        scores[number, : len(found[0])], positions[number, : len(found[1])] = found
    return scores, positions


def _both(some: np.ndarray | None, others: np.ndarray | None) -> np.ndarray | None:
    return others if some is None else some if others is None else some & others


@dataclass(frozen=True, slots=True)
class _Corpus:
    """documents: rows that have words. mean: their words, on average."""

    documents: int
    mean: float

    @classmethod
    def of(cls, segments: Sequence[Keywords], alive: Rows) -> _Corpus:
        documents = words = 0
        for segment, living in zip(segments, alive, strict=True):
            for run in segment.runs:
                lengths = run.lengths
                if living is not None:
                    lengths = lengths[living[run.first : run.first + len(lengths)]]
                documents += int(np.count_nonzero(lengths))
                words += int(lengths.sum(dtype=np.int64))
        return cls(documents, words / documents if documents else 1.0)

    def idf(self, rows: int) -> float:
        """Of a term that so many rows have."""
        return math.log1p((self.documents - rows + 0.5) / (rows + 0.5))


def _best_rows(
    segments: Sequence[Keywords],
    corpus: _Corpus,
    terms: dict[str, float],
    k: int,
    alive: Rows,
    usable: Rows,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores (n,) float32 and positions (n,) int64 of the n <= k best rows, in order."""
    runs = [(at, run) for at, segment in enumerate(segments) for run in segment.runs]
    firsts = np.cumsum([0, *map(len, segments)])
    postings = [[run.postings(term) for term in terms] for _, run in runs]
    frequencies = np.zeros(len(terms), np.int64)
    for (at, run), found in zip(runs, postings, strict=True):
        living = alive[at]
        for number, (rows, _) in enumerate(found):
            counted = rows if living is None else rows[living[run.first + rows]]
            frequencies[number] += len(counted)
    weights = [
        weight * corpus.idf(int(rows))
        for weight, rows in zip(terms.values(), frequencies, strict=True)
    ]
    best = np.empty(0, np.float32), np.empty(0, np.int64)
    for (at, run), found in zip(runs, postings, strict=True):
        scores = np.zeros(len(run.lengths))
        for weight, (rows, counts) in zip(weights, found, strict=True):
            norm = K1 * (1 - B + B / corpus.mean * run.lengths[rows])
            scores[rows] += weight * (K1 + 1) * counts / (counts + norm)
        allowed = usable[at]
        if allowed is not None:
            scores *= allowed[run.first : run.first + len(scores)]
        rows = np.flatnonzero(scores)
        best = _merged(best, (scores[rows].astype(np.float32), firsts[at] + run.first + rows), k)
    return best


def _merged(
    best: tuple[np.ndarray, np.ndarray], more: tuple[np.ndarray, np.ndarray], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The first k of both by falling score, then rising position."""
    scores, positions = (np.concatenate(parts) for parts in zip(best, more, strict=True))
    if len(scores) > k:
        kept = scores >= np.partition(scores, len(scores) - k)[len(scores) - k]
        scores, positions = scores[kept], positions[kept]
    order = np.lexsort((positions, -scores))[:k]
    return scores[order], positions[order]


def fuse(hits: Sequence[Hit], by_words: Sequence[Hit], weight: float = KEYWORD_WEIGHT) -> list[Hit]:
    """The hits of both lists by their reciprocal ranks, those of `by_words` times `weight`, then by
    position. The score `hybrid` is scaled so that the first of both lists has 1."""
    merged: dict[int, Hit] = {}
    sums: dict[int, float] = {}
    for ranked, factor in ((hits, 1.0), (by_words, weight)):
        for rank, hit in enumerate(ranked, 1):
            before = merged.get(hit.position)
            scores = hit.scores if before is None else {**before.scores, **hit.scores}
            merged[hit.position] = Hit(hit.position, scores)
            share = factor * (RANK_CONSTANT + 1) / (RANK_CONSTANT + rank) / (1 + weight)
            sums[hit.position] = sums.get(hit.position, 0.0) + share
    fused = [hit.scored("hybrid", sums[hit.position]) for hit in merged.values()]
    return sorted(fused, key=lambda hit: (-hit.score, hit.position))

"""Exact answers, and which results are right.

A result is right if its exact score is at least that of the k-th best row, less 1e-6: rows of equal
scores are equally right, whichever of them an index finds. So recall needs scores alone, and no
row's number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from chiasm.index.query.scan import Allowed, ColumnIndex
from chiasm.index.segments import as_float32

SAME_SCORE = 1e-6
# Of a query's own row: the scores of one product, computed in two ways.
OWN_SCORE = 1e-5
QUERIES_AT_ONCE = 1024
ROWS_AT_ONCE = 8192  # with the above 32 MiB of scores
BLOCK = 16_384  # rows of a column that are read at once


def rows_of_column(
    index: ColumnIndex, allowed: Allowed | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """The rows of a column that may be found, some at once, from their mapped files: for
    `exact_top`, which then gives no row's number. allowed: as of a search."""
    for number, segment in enumerate(index.segments):
        usable, raw = usable_rows(index, number, allowed), segment.raw(index.column)
        for start in range(0, len(segment), BLOCK):
            rows = np.arange(start, min(start + BLOCK, len(segment)))
            yield start, raw.take(rows if usable is None else rows[usable[rows]])


def usable_rows(index: ColumnIndex, number: int, allowed: Allowed | None) -> np.ndarray | None:
    """The rows of a segment that have a vector and may be found, (rows,) bool; None for all."""
    usable = index.rows_of(number, None if allowed is None else allowed[number])
    has = index.segments[number].has(index.column)
    return has if usable is None else usable if has is None else usable & has


def exact_top(
    blocks: Iterable[tuple[int, np.ndarray]], xq: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of all rows for each query: scores (Q, k) float32, best first, and rows (Q, k)
    int64; -inf and -1 where there are fewer rows.

    blocks: the number of the first row and its rows (n, D) float16 or float32, one after the other.
    xq (Q, D) float32. Memory: some 40 MiB beside a block, whatever their number.
    """
    scores = np.full((len(xq), k), -np.inf, np.float32)
    rows = np.full((len(xq), k), -1, np.int64)
    for first, block in blocks:
        for start in range(0, len(block), ROWS_AT_ONCE):
            part = block[start : start + ROWS_AT_ONCE]
            xb = as_float32(part) if part.dtype == np.float16 else part
            for at in range(0, len(xq), QUERIES_AT_ONCE):
                some = slice(at, at + QUERIES_AT_ONCE)
                _merge(xq[some] @ xb.T, first + start, scores[some], rows[some])
    return scores, rows


def _merge(near: np.ndarray, first: int, scores: np.ndarray, rows: np.ndarray) -> None:
    """Take what is better among the scores (Q, n) of rows `first` and on, into the k best so far,
    which are in order."""
    k = scores.shape[1]
    if near.shape[1] > k and scores[0, -1] == -np.inf:  # of the first rows most are better
        places = np.argpartition(-near, k - 1, axis=1)[:, :k]
        _keep_best(scores, rows, np.take_along_axis(near, places, 1), places + first)
        return
    flat = np.flatnonzero(near > scores[:, -1:])  # three times as fast as by row and column
    queries, places = np.divmod(flat, near.shape[1])
    counts = np.bincount(queries, minlength=len(near))
    touched = np.flatnonzero(counts)
    if not len(touched):
        return
    column = np.arange(len(queries)) - (np.cumsum(counts) - counts)[queries]
    more = np.full((len(near), counts.max()), -np.inf, np.float32)
    numbers = np.full(more.shape, -1, np.int64)
    more[queries, column], numbers[queries, column] = near[queries, places], places + first
    best, ids = scores[touched], rows[touched]
    _keep_best(best, ids, more[touched], numbers[touched])
    scores[touched], rows[touched] = best, ids


def _keep_best(scores: np.ndarray, rows: np.ndarray, more: np.ndarray, numbers: np.ndarray) -> None:
    """Merge further scores and rows into the best ones so far, in place."""
    both = np.concatenate([scores, more], axis=1)
    order = np.argsort(-both, axis=1, kind="stable")[:, : scores.shape[1]]
    scores[:] = np.take_along_axis(both, order, 1)
    rows[:] = np.take_along_axis(np.concatenate([rows, numbers], axis=1), order, 1)


@dataclass(frozen=True)
class Ranked:
    """The best rows of each query: exact scores (Q, K) float32, best first, and positions (Q, K)
    int64, -1 where there are no more."""

    scores: np.ndarray
    positions: np.ndarray

    def __getitem__(self, queries: slice) -> Ranked:
        return Ranked(self.scores[queries], self.positions[queries])

    def scores_of(self, found: np.ndarray) -> np.ndarray:
        """The exact scores of results at positions (Q, k), best first: (Q, k) float32, -inf of a
        result that is not among the best rows."""
        exact = np.full(found.shape, -np.inf, np.float32)
        for column in range(self.scores.shape[1]):
            place = (found == self.positions[:, column, None]) & (found >= 0)
            exact = np.where(place, self.scores[:, column, None], exact)
        return -np.sort(-exact, axis=1)


def without_own(scores: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Scores (Q, k + 1), best first, without that of the row that a query was made of: (Q, k)."""
    return scores[others_than_own(scores, own)].reshape(len(scores), -1)


def others_than_own(scores: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Which of the k + 1 best of each query, by their scores (Q, k + 1), are not the row that it
    was made of: (Q, k + 1) bool, k of each.

    own (Q,) float32: the score of that row, NaN where a query is of no row, or may find it; then
    the last one goes. A row that is exactly like it may go in its place: the scores are the same.
    """
    with np.errstate(invalid="ignore"):
        distance = np.abs(scores - own[:, None])
    distance = np.where(np.isnan(distance), np.inf, distance)
    place = distance.argmin(axis=1)
    rows = np.arange(len(scores))
    place = np.where(distance[rows, place] <= OWN_SCORE, place, scores.shape[1] - 1)
    keep = np.ones(scores.shape, bool)
    keep[rows, place] = False
    return keep


def recall_of(found: np.ndarray, exact: np.ndarray, k: int) -> np.ndarray:
    """The share of each query's k best rows that was found: (Q,) float64, NaN where there are none.

    found (Q, at least k), exact (Q, at least k): exact scores of the results and of the best rows,
    best first, -inf where there are fewer.
    """
    exact = exact[:, :k]
    wanted = (exact > -np.inf).sum(axis=1)
    least = np.where(wanted > 0, exact[np.arange(len(exact)), np.maximum(wanted, 1) - 1], np.inf)
    right = (found[:, :k] >= least[:, None] - SAME_SCORE) & (found[:, :k] > -np.inf)
    with np.errstate(invalid="ignore"):
        return np.minimum(right.sum(axis=1), wanted) / np.where(wanted > 0, wanted, np.nan)

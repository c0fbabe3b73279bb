"""Which lists does a filtered query scan? Those that hold the best of the rows that pass, as far as
can be foreseen.

Without a filter a fixed number of lists has the best rows. What a filter leaves lies elsewhere: one
that goes with the query empties the distant lists, one that goes against it those nearby. So a
query looks at what it has found. Scores of a list's rows are taken to be normal; then from a list
of n rows that pass

    n * P(score > t),    P = upper_tail((t - mean) / deviation)

are expected above the k-th best score found, t. `mean` is the score of the mean of those rows, or
of the list's centroid where that is not known. Lists are scanned, those with the best `mean +
spread * deviation` first, until the others are expected to hold at most a share `missed` of all
rows above t. The first round scans `first` lists, each other one no more than GROWTH times as many
as were scanned before it: t rises meanwhile, and what was expected above a low t need not be
scanned. Where a filter goes against the query t stays low, and more lists follow by themselves.

`missed` comes from the plan, where it was tuned for recall (build/fit.py). A query's lists depend
on the query and the filter alone, not on its batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chiasm.index.query.resident import PassingRows
from chiasm.index.query.scan import Scan
from chiasm.index.segments import best_columns, columns_of

GROWTH = 8
LEAST_DEVIATION = 1e-6  # of a list without rows in the training sample
LEAST = -1e3  # below every score
# Scores of unit vectors, ranked to a millionth of a millionth; the product fits 63 bits.
SCORE_STEPS, MOST_LISTS = 1 << 40, 1 << 16


@dataclass(frozen=True)
class Lists:
    """The lists with rows that pass, best first, of each query: order (Q, n) int64; mean and
    deviation of their scores and how many rows pass, (Q, n) float32."""

    order: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray
    passing: np.ndarray

    def take(self, queries: np.ndarray) -> Lists:
        if len(queries) == len(self.order):
            return self
        arrays = self.order, self.mean, self.deviation, self.passing
        return Lists(*(array[queries] for array in arrays))

    def needed(self, least: np.ndarray, missed: float) -> np.ndarray:
        """How many of the first lists are to be scanned, (Q,) int64, that rows above `least` (Q,)
        are expected in the others for a share `missed` of them at most."""
        if not missed:
            return np.full(len(least), self.order.shape[1])
        found = upper_tail((least[:, None] - self.mean) / self.deviation)
        found *= self.passing
        np.cumsum(found, axis=1, out=found)
        return 1 + np.count_nonzero(found[:, :-1] < (1 - missed) * found[:, -1:], axis=1)

    def slice(self, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """The lists from `start` (Q,) to `stop` (Q,): (Q, most) int64, -1 behind the last."""
        places = start[:, None] + np.arange(int((stop - start).max()))
        beyond = places >= stop[:, None]
        places[beyond] = 0
        lists = np.take_along_axis(self.order, places, 1)
        lists[beyond] = -1
        return np.ascontiguousarray(lists)


def scan_covering(
    scan: Scan, xq: np.ndarray, k: int, wanted: int, *, first: int, missed: float
) -> tuple[np.ndarray, np.ndarray]:
    """The best `wanted` rows of each query by their codes, as of `Scan.candidates`: scores (Q,
    wanted) float32 and positions (Q, wanted) int64, -1 where there are no more."""
    trained = scan.index.trained
    assert trained is not None
    coded = trained.queries(xq)
    ranked = rank_lists(scan, xq, coded)
    most = ranked.order.shape[1]
    scores = np.full((len(xq), wanted), -np.inf, np.float32)
    rows = np.full((len(xq), wanted), -1, np.int64)
    done, goal = np.zeros(len(xq), np.int64), np.full(len(xq), min(max(1, first), most))
    while len(active := np.flatnonzero(goal > done)):
        lists = ranked.take(active)
        part = lists.slice(done[active], goal[active])
        found = scan.in_lists(xq[active], coded[active], part, wanted)
        if done[active].any():
            found = _best((scores[active], rows[active]), found)
        scores[active], rows[active] = found
        done[active] = goal[active]
        least = np.partition(found[0], wanted - k, axis=1)[:, wanted - k]
        # Of a query with fewer than k rows, all are needed.
        needed = np.where(least > -np.inf, lists.needed(np.maximum(least, LEAST), missed), most)
        goal[active] = np.minimum(needed, GROWTH * done[active])
    return scores, rows


def _best(
    some: tuple[np.ndarray, np.ndarray], others: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """As many of the best of two rounds as either has: scores, rows, both (Q, wanted)."""
    scores, rows = (np.concatenate(pair, axis=1) for pair in zip(some, others, strict=True))
    best = best_columns(scores, some[0].shape[1])
    return columns_of(scores, best), columns_of(rows, best)


def rank_lists(scan: Scan, xq: np.ndarray, coded: np.ndarray) -> Lists:
    """The lists of each query. Where it is not known which rows pass, all lists are taken to have
    as many. Where the plan ranks without deviations, those of a query's lists are taken to be the
    deviation of their means."""
    trained, plan = scan.index.trained, scan.index.plan
    assert trained is not None
    passing = scan.passing or PassingRows(np.ones(plan.lists, np.int64))
    if passing.means is not None:
        mean = coded @ passing.means.T
    else:
        mean = (coded if plan.space == "projected" else xq) @ trained.centroids.T
    order = _descending(mean + trained.list_bias, passing.counts > 0)
    mean = np.take_along_axis(mean, order, 1)
    if plan.spread:
        deviation = (trained.list_bias / np.float32(plan.spread))[order]
    else:
        deviation = np.broadcast_to(mean.std(axis=1, keepdims=True), order.shape)
    deviation = np.maximum(deviation, np.float32(LEAST_DEVIATION))
    return Lists(order, mean, deviation, passing.counts.astype(np.float32)[order])


def _descending(scores: np.ndarray, some: np.ndarray) -> np.ndarray:
    """The columns of `some` (L,) bool by the falling scores (Q, L) of each row, equal ones by
    number: (Q, n) int64. Score and number are sorted as one integer, in half the time of argsort.
    """
    columns = np.flatnonzero(some)
    packed = (scores[:, columns] * np.float32(-SCORE_STEPS)).astype(np.int64)
    packed *= MOST_LISTS
    packed += columns
    packed.sort(axis=1)
    packed %= MOST_LISTS
    return packed


def upper_tail(x: np.ndarray) -> np.ndarray:
    """P(z > x) of a standard normal z: within 0.007, and a factor of 2 up to 5 deviations. A third
    of the time that scipy's `ndtr` takes, which would be a tenth of a query."""
    size = np.abs(x)
    tail = size * np.float32(-0.416)
    tail -= np.float32(0.717)
    tail *= size
    np.exp(tail, out=tail)
    tail *= np.float32(0.5)
    np.subtract(1, tail, out=tail, where=x < 0)
    return tail

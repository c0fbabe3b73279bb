"""Which lists does a filtered query scan? Those that hold the best of the rows that pass, as far as
can be foreseen.

Without a filter a fixed number of lists has the best rows. What a filter leaves lies elsewhere: one
that goes with the query empties the distant lists, one that goes against it those nearby. So a
query scans as many lists as without a filter, and looks at what it has found. Scores of a list's
rows are taken to be normal; then from a list of n rows that pass

    n * P(score > t),    P = upper_tail((t - mean) / deviation)

are expected above the k-th best score found, t. `mean` is the score of the mean of those rows, or
of the list's centroid where that is not known. More lists are scanned, those with the best `mean +
spread * deviation` first, until the others are expected to hold at most a share `missed` of all
rows above t. Where a filter goes against the query t is low, and more lists follow by themselves.
Since t only rises by what they hold, twice is enough.

`missed` comes from the plan, where it was tuned for recall (build/fit.py). A query's lists depend
on the query and the filter alone, not on its batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chiasm.index.query.code_scan import PassingRows, best_of
from chiasm.index.query.scan import Scan

LEAST_DEVIATION = 1e-6  # of a list without rows in the training sample
LEAST = -1e3  # below every score
HALVINGS = 10  # of the range of the lists' scores: to a thousandth of it


@dataclass(frozen=True)
class Lists:
    """The lists with rows that pass, in the order of their numbers (n,) int64. key (Q, n) float32:
    by which each query ranks them; mean (Q, n) and deviation, (n,) or (Q, 1), of their rows'
    scores; passing (n,) float32: how many rows pass."""

    numbers: np.ndarray
    key: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray
    passing: np.ndarray

    def best(self, count: int) -> np.ndarray:
        """The key of the last of the `count` best lists, (Q,) float32."""
        place = max(0, len(self.numbers) - max(1, count))
        return np.partition(self.key, place, axis=1)[:, place]

    def enough(self, least: np.ndarray, edge: np.ndarray, missed: float) -> np.ndarray:
        """The key above which lists are to be scanned, (Q,) float32, `edge` (Q,) at most: rows
        above `least` (Q,) are expected below it for a share `missed` of them."""
        low = np.full(len(edge), -np.inf, np.float32)
        if not missed:
            return low
        expected = upper_tail((np.maximum(least, LEAST)[:, None] - self.mean) / self.deviation)
        expected *= self.passing
        most = missed * expected.sum(axis=1)
        part = np.empty_like(expected)

        def few(key: np.ndarray) -> np.ndarray:
            np.multiply(expected, self.key < key[:, None], out=part)
            return part.sum(axis=1) <= most

        enough = few(edge)
        low = np.where(enough, edge, self.key.min(axis=1))
        high = edge.copy()
        for _ in range(HALVINGS * (not enough.all())):
            middle = (low + high) / 2
            fits = few(middle)
            low, high = np.where(fits, middle, low), np.where(fits, high, middle)
        return np.where(least > -np.inf, low, -np.inf)  # with fewer than k rows, all are needed

    def where(self, mask: np.ndarray) -> np.ndarray:
        """The lists of a mask (q, n) bool: (q, most) int64, -1 behind the last."""
        counts = np.count_nonzero(mask, axis=1)
        lists = np.full((len(mask), max(1, int(counts.max(initial=0)))), -1)
        queries, columns = np.nonzero(mask)
        places = np.arange(len(queries)) - np.repeat(np.cumsum(counts) - counts, counts)
        lists[queries, places] = self.numbers[columns]
        return lists


def scan_covering(
    scan: Scan, xq: np.ndarray, k: int, wanted: int, *, first: int, missed: float
) -> tuple[np.ndarray, np.ndarray]:
    """The best `wanted` rows of each query by their codes, as of `Scan.candidates`: scores (Q,
    wanted) float32 and positions (Q, wanted) int64, -1 where there are no more. first: lists that
    every query scans."""
    trained = scan.index.trained
    assert trained is not None
    coded = trained.queries(xq)
    lists = rank_lists(scan, xq, coded)
    edge = lists.best(first)
    scores, rows = scan.in_lists(xq, coded, lists.where(lists.key >= edge[:, None]), wanted)
    least = np.partition(scores, wanted - k, axis=1)[:, wanted - k]
    enough = lists.enough(least, edge, missed)
    if len(more := np.flatnonzero(enough < edge)):
        key = lists.key[more]
        others = lists.where((key >= enough[more, None]) & (key < edge[more, None]))
        found = scan.in_lists(xq[more], coded[more], others, wanted)
        scores[more], rows[more] = best_of((scores[more], rows[more]), found)
    return scores, rows


def rank_lists(scan: Scan, xq: np.ndarray, coded: np.ndarray) -> Lists:
    """The lists of each query. Where it is not known which rows pass, all lists are taken to have
    as many. Where the plan ranks without deviations, those of a query's lists are taken to be the
    deviation of their means."""
    trained, plan = scan.index.trained, scan.index.plan
    assert trained is not None
    passing = scan.passing or PassingRows(np.ones(plan.lists, np.int64))
    some = np.flatnonzero(passing.counts)
    if passing.means is not None:
        mean = coded @ passing.means[some].T
    else:
        mean = (coded if plan.space == "projected" else xq) @ trained.centroids[some].T
    bias = trained.list_bias[some]
    deviation = bias / np.float32(plan.spread) if plan.spread else mean.std(axis=1, keepdims=True)
    deviation = np.maximum(deviation, np.float32(LEAST_DEVIATION))
    return Lists(some, mean + bias, mean, deviation, passing.counts[some].astype(np.float32))


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

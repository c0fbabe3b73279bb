"""Figures with standard errors, and two ways to answer the same queries, compared query by query:
the rule by which a way ships, and the exact test that a report gives.

Queries of a picture are not independent, pictures are: errors are of sums over pictures (Liang and
Zeger, Longitudinal data analysis using generalized linear models, 1986). Of two ways what counts is
which queries only one of them answers right (McNemar, Note on the sampling error of the difference
between correlated proportions or percentages, 1947).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import binom

from chiasm.pipeline.metrics import KS, mean_reciprocal_of_ranks

DECIMALS = 4  # of shares and errors in reports
TEXT_WEIGHTS = tuple(round(0.05 * i, 2) for i in range(21))  # of the text, in means compared


def share(right: np.ndarray, pictures: np.ndarray) -> tuple[float, float]:
    """The mean of right (Q,), bool or numbers, and its standard error: the root of the sum over
    pictures of (sum of a picture's `right` less the mean) squared, by Q. pictures (Q,) int, none
    below 0: of each query. NaN without queries."""
    if not len(right):
        return float("nan"), float("nan")
    mean = float(np.mean(right))
    by_picture = np.bincount(pictures, weights=np.asarray(right, dtype=np.float64) - mean)
    return mean, float(np.sqrt(np.square(by_picture).sum()) / len(right))


def named_share(name: str, right: np.ndarray, pictures: np.ndarray) -> dict[str, float]:
    """`share` as fields of a report, rounded: {name: mean, name_error: standard error}."""
    mean, error = share(right, pictures)
    return {name: round(mean, DECIMALS), f"{name}_error": round(error, DECIMALS)}


def format_share(mean: float, error: float) -> str:
    """A figure and its standard error: `0.612 (0.008)`."""
    return f"{mean:.3f} ({error:.3f})"


def recalls_with_errors(
    ranks: np.ndarray, pictures: np.ndarray, ks: Sequence[int] = KS
) -> dict[str, float]:
    """R@k of ranks (Q,) of `metrics.ranks_of`, rounded: {"r1": 0.8, "r1_error": 0.01, ...}.
    pictures (Q,) int: of each query."""
    figures: dict[str, float] = {}
    for k in ks:
        figures |= named_share(f"r{k}", np.asarray(ranks) < k, pictures)
    return figures


def cross_fitted(ranks: np.ndarray, pictures: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """Ranks (W, Q) of W ways, such as weights of a mean -> ranks (Q,), of each half of the pictures
    by the way with the highest mean reciprocal rank on the other half, of equals the first; and
    that way's number for the pictures of even and of odd number. pictures (Q,) int: of each query.
    """
    halves = [pictures % 2 == half for half in (0, 1)]
    ways = [
        int(np.argmax([mean_reciprocal_of_ranks(way[other]) for way in ranks]))
        for other in reversed(halves)
    ]
    return np.where(halves[0], ranks[ways[0]], ranks[ways[1]]), (ways[0], ways[1])


def wins_by_one_standard_error(ours: np.ndarray, theirs: np.ndarray, rows: np.ndarray) -> bool:
    """Answers (Q,) bool of two, and the picture (Q,) that each query asks for: are ours right more
    often, by more than one standard error? Queries of a picture are not independent, pictures are:
    the error is that of the sum over pictures."""
    gained = ours.astype(np.float64) - theirs.astype(np.float64)
    by_picture = np.bincount(rows, weights=gained)
    return bool(by_picture.sum() > np.sqrt(np.square(by_picture).sum()))


def mcnemar(ours: np.ndarray, theirs: np.ndarray) -> tuple[int, int, float]:
    """Answers (Q,) bool of two to independent queries -> how many only ours answers right, how many
    only theirs, and p: the chance of so many or more for ours among those, were both as likely
    (exact, one-sided; 1 where they agree everywhere)."""
    only_ours = int(np.count_nonzero(ours & ~theirs))
    only_theirs = int(np.count_nonzero(theirs & ~ours))
    p = binom.sf(only_ours - 1, only_ours + only_theirs, 0.5)
    return only_ours, only_theirs, float(p)

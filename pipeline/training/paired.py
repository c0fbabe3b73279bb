"""Two ways to answer the same queries, compared query by query: the rule by which a way ships, and
the exact test that a report gives.

What counts is which queries only one of the two answers right (McNemar, Note on the sampling error
of the difference between correlated proportions or percentages, 1947).
"""

from __future__ import annotations

import numpy as np
from scipy.stats import binom


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

"""What recall can be promised for queries that nobody has asked yet.

A mean over 1,000 queries is an estimate: half of all other sets of queries fall below it. What is
promised is kept by the mean of almost any set of 500 others.
"""

from __future__ import annotations

import math

import numpy as np

SET = 500  # queries of a set that is to keep the promise
KEPT = 2.054  # standard deviations: by 98 % of such sets
SURE = 1.645  # and this with 95 % confidence in what was measured


def promised_recall(recalls: np.ndarray) -> float:
    """A recall that the mean of 98 % of all sets of SET unseen queries keeps, with 95 % confidence.

    recalls (n,): of queries drawn as those will be. A tolerance limit by the normal distribution of
    means: mean - s (SURE / sqrt(n) + KEPT / sqrt(SET)), s the standard deviation of one query's
    recall. One query that found nothing is added, so that a perfect sample does not promise that
    nothing will ever be missed. 0 without queries.
    """
    recalls = recalls[~np.isnan(recalls)]
    if not len(recalls):
        return 0.0
    sample = np.append(recalls, 0.0)
    deviation = float(sample.std(ddof=1))
    width = SURE / math.sqrt(len(sample)) + KEPT / math.sqrt(SET)
    return max(0.0, float(sample.mean()) - deviation * width)

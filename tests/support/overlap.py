"""The recall of an approximate search against the exact one."""

from __future__ import annotations

import numpy as np


def overlap_at(found: np.ndarray, truth: np.ndarray, k: int) -> float:
    """The share of the exact first k that an approximate search found among its first k, in any
    order.

    found and truth are (Q, >= k) ids; -1 marks a place that stayed empty and is never counted.
    """
    found, truth = np.asarray(found)[:, :k], np.asarray(truth)[:, :k]
    if len(found) != len(truth):
        raise ValueError(f"expected as many rows as truth has ({len(truth)}), found {len(found)}")
    wanted = shared = 0
    for ids, exact in zip(found, truth, strict=True):
        exact = exact[exact >= 0]
        wanted += len(exact)
        shared += len(np.intersect1d(ids, exact))
    return shared / wanted if wanted else float("nan")

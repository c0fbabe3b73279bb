"""How good is a ranking? Pure functions over small arrays; nothing here knows what is searched.

`right` is (Q, K) bool: whether the r-th result of query q is a right one, best result first. Who
decides what is right is the caller: equal ids, an equal caption, or claims recomputed from facts.
"""

from __future__ import annotations

import numpy as np


def recall_at(right: np.ndarray, k: int) -> float:
    """The share of queries with at least one right result among the first k: the R@k of retrieval
    papers, where each query has one right answer or any of several will do. NaN without queries."""
    right = _checked(right, k)
    return float(right[:, :k].any(axis=1).mean()) if len(right) else float("nan")


def mean_reciprocal_rank(right: np.ndarray) -> float:
    """The mean over queries of 1 / rank of the first right result; 0 where there is none."""
    right = _checked(right, 1)
    if not len(right):
        return float("nan")
    found = right.any(axis=1)
    rank = right.argmax(axis=1) + 1 if right.shape[1] else np.ones(len(right))
    return float(np.where(found, 1.0 / rank, 0.0).mean())


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


def _checked(right: np.ndarray, k: int) -> np.ndarray:
    right = np.asarray(right, dtype=bool)
    if right.ndim != 2:
        raise ValueError(f"expected (queries, results), found an array of shape {right.shape}")
    if k < 1:
        raise ValueError(f"expected k from 1 up, found {k}")
    return right

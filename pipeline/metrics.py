"""How good is a ranking? Pure functions over small arrays; nothing here knows what is searched.

`right` is (Q, K) bool: whether the r-th result of query q is a right one, best result first. Who
decides what is right is the caller: equal ids, an equal caption, or claims recomputed from facts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

KS = (1, 5, 10)


def recall_at(right: np.ndarray, k: int) -> float:
    """The share of queries with at least one right result among the first k: the R@k of retrieval
    papers, where each query has one right answer or any of several will do. NaN without queries."""
    right = _checked(right, k)
    return float(right[:, :k].any(axis=1).mean()) if len(right) else float("nan")


def recalls(right: np.ndarray, ks: Sequence[int] = KS) -> dict[str, float]:
    """R@k for each k: {"r1": 0.8, ...}, unrounded."""
    return {f"r{k}": recall_at(right, k) for k in ks}


def mean_reciprocal_rank(right: np.ndarray) -> float:
    """The mean over queries of 1 / rank of the first right result; 0 where there is none."""
    right = _checked(right, 1)
    if not len(right):
        return float("nan")
    found = right.any(axis=1)
    rank = right.argmax(axis=1) + 1 if right.shape[1] else np.ones(len(right))
    return float(np.where(found, 1.0 / rank, 0.0).mean())


def ranks_of(scores: np.ndarray, own: np.ndarray) -> np.ndarray:
    """The rank, from 0 up, of each query's one right item: (Q,) int64; ties count against it.

    scores (Q, N), higher is nearer, NaN below every number; own (Q,) int, the column of the right
    item.
    """
    scores = np.asarray(scores)
    scores = np.where(np.isnan(scores), -np.inf, scores)  # a comparison with NaN is always false
    return (scores >= np.take_along_axis(scores, own[:, None], axis=1)).sum(axis=1) - 1


def recalls_of_ranks(ranks: np.ndarray, ks: Sequence[int] = KS) -> dict[str, float]:
    """`recalls` from the ranks (Q,) of `ranks_of`. NaN without queries."""
    ranks = np.asarray(ranks)
    return {f"r{k}": float((ranks < k).mean()) if len(ranks) else float("nan") for k in ks}


def mean_reciprocal_of_ranks(ranks: np.ndarray) -> float:
    """`mean_reciprocal_rank` from the ranks (Q,) of `ranks_of`. NaN without queries."""
    ranks = np.asarray(ranks)
    return float((1 / (1 + ranks)).mean()) if len(ranks) else float("nan")


def top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """(Q, N) scores -> (Q, min(k, N)) columns, best first; of equals the lower column first, -1
    in place of a column whose score is NaN."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]  # NaN comes last
    return np.where(np.isnan(np.take_along_axis(scores, order, axis=1)), -1, order)


def reordered(order: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Columns `order` (Q, K), as `top_k` gives them, by new scores (Q, K): best first, of equals
    the earlier one; -1 last, in place of a column whose score is NaN, and where it was -1 before.
    So a model whose scores are NaN does not pass with the order that it was given."""
    places = top_k(np.where(np.asarray(order) < 0, np.nan, scores), np.shape(order)[1])
    return np.where(places < 0, -1, np.take_along_axis(order, places, axis=1))


def signs_right(logits: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Is a logit above 0 where the pair is true, and not above 0 where it is not? NaN is neither.
    logits, true (bool), and the answer (bool) are of one shape."""
    return np.where(true, logits > 0, logits <= 0)


def right_at(
    hits: Sequence[Sequence[int]] | np.ndarray, relevant: np.ndarray, k: int | None = None
) -> np.ndarray:
    """Hits -> `right` (Q, K) bool, K being `k` or the longest list of hits.

    hits: for each of Q queries columns of `relevant` (Q, N) bool, best first, -1 or a short list
    where there were fewer. ValueError where there are not as many lists as rows.
    """
    if len(hits) != len(relevant):
        raise ValueError(f"expected {len(relevant)} lists of hits, found {len(hits)}")
    width = max((len(row) for row in hits), default=0) if k is None else k
    right = np.zeros((len(hits), width), dtype=bool)
    for row, columns in enumerate(hits):
        places = np.asarray(columns, dtype=np.int64)[:width]
        right[row, : len(places)] = np.where(places >= 0, relevant[row, places], False)
    return right


def _checked(right: np.ndarray, k: int) -> np.ndarray:
    right = np.asarray(right, dtype=bool)
    if right.ndim != 2:
        raise ValueError(f"expected (queries, results), found an array of shape {right.shape}")
    if k < 1:
        raise ValueError(f"expected k from 1 up, found {k}")
    return right

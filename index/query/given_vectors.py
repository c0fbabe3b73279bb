"""What a caller of `search_vectors` gives -> what can be searched, or a line that says why not."""

from __future__ import annotations

from typing import Any

import numpy as np

from chiasm.pipeline.errors import UsageError

# Scores and ids beyond the index's rows: 12 bytes for each, 0.8 GB in all.
MAX_PADDED = 1 << 26
# Squared norms between these are searched as they are: unit vectors, and what is like them.
NORMAL = np.float32(2.0**-20), np.float32(2.0**20)


def require_answer(queries: int, k: int, rows: int) -> None:
    """Raises UsageError where k is above the index's rows and an answer padded to (queries, k)
    would have more than MAX_PADDED scores."""
    most = max(rows, MAX_PADDED // max(1, queries))
    if k > most:
        raise UsageError(
            "k",
            expected=f"at most {most:,} for {queries:,} queries of {rows:,} rows",
            found=f"{k:,}",
            do="take a smaller k, or fewer queries at once",
        )


def given_vectors(xq: Any, dim: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Query vectors (Q, dim) float32 whose squares neither overflow nor vanish, and exponents (Q,)
    of 2 to multiply their scores by, None where they are as they were given.

    Raises UsageError for another shape and for NaN, infinite or zero vectors.
    """
    try:
        with np.errstate(over="ignore"):  # infinity is refused below
            xq = np.asarray(xq, dtype=np.float32)
    except (ValueError, TypeError, OverflowError):
        found = "something else"
    else:
        if xq.ndim == 2 and xq.shape[1] == dim:
            return _scaled(xq)
        found = f"shape {xq.shape}"
    raise UsageError("query vectors", expected=f"shape (Q, {dim})", found=found)


def _scaled(xq: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        squares = np.einsum("qd,qd->q", xq, xq)
    # NaN fails as well
    if not len(xq) or NORMAL[0] <= squares.min() <= squares.max() <= NORMAL[1]:
        return xq, None
    largest = np.abs(xq).max(axis=1)
    bad = np.flatnonzero(~((largest > 0) & (largest < np.inf)))
    if len(bad):
        raise UsageError(
            f"query vector {bad[0]}",
            expected="finite numbers, not all zero",
            found="zeros, NaN or infinity",
        )
    exponents = np.frexp(largest)[1]
    exponents[(squares >= NORMAL[0]) & (squares <= NORMAL[1])] = 0
    return np.ldexp(xq, -exponents[:, None]), exponents


def pad(
    scores: np.ndarray, ids: np.ndarray, k: int, exponents: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and ids (Q, n) with -inf and -1 to (Q, k), the scores times 2 ** exponents (Q,)."""
    if exponents is not None:
        with np.errstate(over="ignore", under="ignore"):
            scores = np.ldexp(scores, exponents[:, None])
    if (missing := k - scores.shape[1]) > 0:
        scores = np.pad(scores, ((0, 0), (0, missing)), constant_values=-np.inf)
        ids = np.pad(ids, ((0, 0), (0, missing)), constant_values=-1)
    return scores, ids

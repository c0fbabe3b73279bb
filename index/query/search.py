"""Vectors -> hits: every segment searched, candidates scored exactly, the best of all merged.

FAISS gives more candidates than wanted, and each is scored again from the raw vectors on disk, in
float32. A score therefore depends on the query and the row alone, never on the kind of index, the
segment or the batch, and equal scores are ordered by position. The cost is reading a few hundred
rows a query. Search parameters travel with the call; the shared index is never changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from chiasm.index.faiss_runtime import load_faiss
from chiasm.index.segments import Segment

# Candidates beyond k, so that equal scores around rank k are ordered by position and not by the
# order of FAISS's heap.
EXTRA_CANDIDATES = 32
OVERSAMPLE = 4  # candidates per result from 8-bit codes: a true neighbour is rarely far down
MAX_GATHERED = 1 << 24  # floats gathered at once for exact scoring: 64 MiB


def search(
    segments: Sequence[Segment], column: str, xq: np.ndarray, k: int, nprobe: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k best rows of each query: scores (Q, k) float32, best first, and positions (Q, k) int64.

    xq is (Q, D) float32. nprobe: cells of an IVF index to search, 0 for an exact one. A position
    counts rows through the segments in order; where there are fewer than k rows the rest is -1 with
    score -inf.
    """
    xq = np.ascontiguousarray(xq, dtype=np.float32)
    scores = [np.full((len(xq), k), -np.inf, dtype=np.float32)]
    positions = [np.full((len(xq), k), -1, dtype=np.int64)]
    first = 0
    for segment in segments:
        # (Q, <= EXTRA_CANDIDATES + OVERSAMPLE k)
        rows = candidate_rows(segment, column, xq, k, nprobe)
        scores.append(exact_scores(segment.raw(column), xq, rows))
        positions.append(np.where(rows < 0, -1, rows + first))
        first += len(segment)
    return best_k(np.concatenate(scores, axis=1), np.concatenate(positions, axis=1), k)


def candidate_rows(
    segment: Segment, column: str, xq: np.ndarray, k: int, nprobe: int
) -> np.ndarray:
    """Rows of one segment that may be among the k best: (Q, n) int64, -1 where there are no
    more."""
    index = segment.index(column)
    if not index.ntotal:
        return np.empty((len(xq), 0), dtype=np.int64)
    wanted = k * OVERSAMPLE if nprobe else k
    _, rows = index.search(
        xq, min(wanted + EXTRA_CANDIDATES, index.ntotal), params=_parameters(nprobe)
    )
    return rows


def _parameters(nprobe: int) -> Any:
    return load_faiss().SearchParametersIVF(nprobe=nprobe) if nprobe else None


def exact_scores(raw: np.ndarray, xq: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Inner products of (Q, D) queries with (Q, n) rows of `raw` (N, D) float16: (Q, n) float32,
    -inf where a row is -1."""
    scores = np.empty(rows.shape, dtype=np.float32)
    step = max(1, MAX_GATHERED // max(1, rows.shape[1] * xq.shape[1]))
    for start in range(0, len(xq), step):
        block = slice(start, start + step)
        vectors = raw[np.maximum(rows[block], 0)].astype(np.float32)  # (q, n, D)
        scores[block] = np.einsum("qnd,qd->qn", vectors, xq[block])
    scores[rows < 0] = -np.inf
    return scores


def best_k(scores: np.ndarray, positions: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The first k of (Q, n) candidates by falling score, then rising position."""
    order = np.lexsort((positions, -scores), axis=-1)[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(positions, order, 1)

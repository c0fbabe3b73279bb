"""Vectors -> hits: every segment searched, candidates scored exactly, the best of all merged.

FAISS gives more candidates than wanted, and each is scored again from the raw vectors on disk, in
float32. A score therefore depends on the query and the row alone, never on the kind of index, the
segment or the batch, and equal scores are ordered by position: where FAISS cut its candidates among
equal ones, more are requested for. Where the cells that were searched hold fewer than k rows, more
cells are. Search parameters travel with the call; the shared index is never changed.

The cost is reading a few hundred rows a query. Memory is bounded by the candidates of the queries
that are searched together, some 16 bytes each, and at the least by those of one query.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from chiasm.index.faiss_runtime import load_faiss
from chiasm.index.segments import Segment

# Candidates beyond k: so many equal scores around rank k cost no second look.
EXTRA_CANDIDATES = 32
OVERSAMPLE = 4  # candidates per result from 8-bit codes: a true neighbour is rarely far down
MAX_CANDIDATES = 1 << 20  # of all queries that are searched together
MAX_GATHERED = 1 << 24  # floats gathered at once for exact scoring: 64 MiB
# Two sums of the same products in another order differ by less, for unit vectors in float32.
SAME_SCORE = 1e-6


def search(
    segments: Sequence[Segment], column: str, xq: np.ndarray, k: int, nprobe: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k best rows of each query: scores (Q, k) float32, best first, and positions (Q, k) int64.

    xq is (Q, D) float32. nprobe: cells of an IVF index to search, 0 for an exact one; more are
    searched for a query that finds fewer than k rows. A position counts rows through the segments
    in order; where there are fewer than k rows the rest is -1 with score -inf.
    """
    xq = np.ascontiguousarray(xq, dtype=np.float32)
    scores = np.full((len(xq), k), -np.inf, dtype=np.float32)
    positions = np.full((len(xq), k), -1, dtype=np.int64)
    available = sum(segment.index(column).ntotal for segment in segments)
    cells = max((getattr(segment.index(column), "nlist", 0) for segment in segments), default=0)
    nprobe = min(nprobe, cells)
    step = max(1, MAX_CANDIDATES // max(1, _wanted(k, nprobe)))
    for start in range(0, len(xq), step):
        waiting, probed = np.arange(start, min(start + step, len(xq))), nprobe
        while len(waiting):
            found = _search_block(segments, column, xq[waiting], k, probed)
            scores[waiting], positions[waiting] = found
            full = min(k, available)
            short = (found[1][:, :full] < 0).any(axis=1)
            if not probed or probed >= cells:
                break
            waiting, probed = waiting[short], min(2 * probed, cells)
    return scores, positions


def _search_block(
    segments: Sequence[Segment], column: str, xq: np.ndarray, k: int, nprobe: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k best rows in so many cells; the segments one after the other, so that the candidates of
    one are in memory at a time."""
    scores = np.full((len(xq), k), -np.inf, dtype=np.float32)
    positions = np.full((len(xq), k), -1, dtype=np.int64)
    first = 0
    for segment in segments:
        for numbers, rows in candidate_rows(segment, column, xq, k, nprobe):
            found = exact_scores(segment.raw(column), xq[numbers], rows)
            places = np.where(rows < 0, -1, rows + first)
            scores[numbers], positions[numbers] = best_k(
                np.concatenate((scores[numbers], found), axis=1),
                np.concatenate((positions[numbers], places), axis=1),
                k,
            )
        first += len(segment)
    return scores, positions


def candidate_rows(
    segment: Segment, column: str, xq: np.ndarray, k: int, nprobe: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of one segment that may be among the k best: the numbers of some queries, and their rows
    (q, n) int64, -1 where there are no more. Each query comes once."""
    index = segment.index(column)
    if not index.ntotal:
        return
    parameters = _parameters(segment, nprobe)
    wanted = min(_wanted(k, nprobe), index.ntotal)
    near, rows = index.search(xq, wanted, params=parameters)
    cut = _is_cut(near, rows, k, index.ntotal)
    if not cut.all():
        yield np.flatnonzero(~cut), rows[~cut]
    for query in np.flatnonzero(cut):  # alone: so many candidates take memory
        requested = wanted
        while True:
            requested = min(4 * requested, index.ntotal)
            near, rows = index.search(xq[query, None], requested, params=parameters)
            if not _is_cut(near, rows, k, index.ntotal).any():
                break
        yield np.array([query]), rows


def _is_cut(near: np.ndarray, rows: np.ndarray, k: int, available: int) -> np.ndarray:
    """Which queries may have lost one of the k best by a cut among equal scores: FAISS keeps any of
    those, and the ones of the lowest positions are wanted. (Q,) bool."""
    wanted = rows.shape[1]
    if wanted >= available:
        return np.zeros(len(rows), dtype=bool)
    return (rows[:, -1] >= 0) & (near[:, -1] >= near[:, k - 1] - SAME_SCORE)


def _wanted(k: int, nprobe: int) -> int:
    return (k * OVERSAMPLE if nprobe else k) + EXTRA_CANDIDATES


def _parameters(segment: Segment, nprobe: int) -> Any:
    faiss = load_faiss()
    only = {}
    if len(segment.deleted):
        only = {"sel": faiss.IDSelectorNot(faiss.IDSelectorBatch(segment.deleted))}
    if nprobe:
        return faiss.SearchParametersIVF(nprobe=nprobe, **only)
    return faiss.SearchParameters(**only) if only else None


def exact_scores(raw: np.ndarray, xq: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Inner products of (Q, D) queries with (Q, n) rows of `raw` (N, D) float16: (Q, n) float32,
    -inf where a row is -1."""
    scores = np.empty(rows.shape, dtype=np.float32)
    width = max(1, min(rows.shape[1], MAX_GATHERED // xq.shape[1]))
    step = max(1, MAX_GATHERED // (width * xq.shape[1]))
    for start in range(0, len(xq), step):
        for left in range(0, rows.shape[1], width):
            block = slice(start, start + step), slice(left, left + width)
            vectors = raw[np.maximum(rows[block], 0)].astype(np.float32)  # (q, n, D)
            scores[block] = np.einsum("qnd,qd->qn", vectors, xq[block[0]])
    scores[rows < 0] = -np.inf
    return scores


def best_k(scores: np.ndarray, positions: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The first k of (Q, n) candidates by falling score, then rising position."""
    order = np.lexsort((positions, -scores), axis=-1)[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(positions, order, 1)

"""Vectors -> hits: the codes scanned, the best candidates scored exactly.

    scan     the lists of each query are ranked, and the codes in the best of them scanned
    score    the candidates, from the stored vectors, in float32

A score depends on the query and the row alone, never on the kind of index, the segment or the
batch, and equal scores are ordered by position: where the scan cut its candidates among equal ones,
more are requested for. Where the lists that were scanned hold fewer than k rows, more lists are.
Search parameters travel with the call; the shared index is never changed.

Memory is bounded by the candidates of the queries that are searched together, some 16 bytes each,
and at the least by those of one query.
"""

from __future__ import annotations

import numpy as np

from chiasm.index.query.scan import Allowed, ColumnIndex, Scan
from chiasm.index.segments import columns_of

# Candidates beyond k: so many equal scores around rank k cost no second scan.
EXTRA_CANDIDATES = 8
MAX_CANDIDATES = 1 << 20  # of all queries that are searched together
# Floats of candidates that are scored at once: they fit a processor's cache.
SCORED_AT_ONCE = 1 << 16
# Two sums of the same products in another order differ by less, for unit vectors in float32.
SAME_SCORE = 1e-6


def search(
    index: ColumnIndex, xq: np.ndarray, k: int, nprobe: int, allowed: Allowed | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k best rows of each query: scores (Q, k) float32, best first, and positions (Q, k) int64.

    xq is (Q, D) float32. nprobe: lists to scan, 0 for an exact column; more are scanned for a query
    that finds fewer than k rows. allowed: the rows that may be found. A position counts rows
    through the segments in order; where there are fewer than k rows the rest is -1 with score -inf.
    """
    wanted = (index.plan.candidates(k, nprobe) if nprobe else k) + EXTRA_CANDIDATES
    return search_scan(index.scan(allowed), xq, k, wanted, nprobe)


def search_scan(
    scan: Scan, xq: np.ndarray, k: int, wanted: int, nprobe: int
) -> tuple[np.ndarray, np.ndarray]:
    """The same of what is scanned. wanted: candidates of a query, to be scored again."""
    xq = np.ascontiguousarray(xq, dtype=np.float32)
    wanted = min(wanted, max(1, scan.available))
    step = max(1, MAX_CANDIDATES // wanted)
    if len(xq) <= step:
        return _search_block(scan, xq, k, wanted, nprobe)
    blocks = [
        _search_block(scan, xq[start : start + step], k, wanted, nprobe)
        for start in range(0, len(xq), step)
    ]
    scores, positions = zip(*blocks, strict=True)
    return np.concatenate(scores), np.concatenate(positions)


def _search_block(
    scan: Scan, xq: np.ndarray, k: int, wanted: int, nprobe: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k best rows of queries that are searched together: scores (Q, k), positions (Q, k)."""
    near, rows = scan.candidates(xq, wanted, nprobe)
    scores, positions = best_k(*score(scan.index, xq, rows), k)
    if wanted < scan.available and not scan.index.any_of_equal:
        for query in np.flatnonzero(_is_cut(near, k)):  # alone: so many candidates take memory
            alone = xq[query, None]
            scores[query], positions[query] = _search_uncut(scan, alone, k, wanted, nprobe)
    last = min(k, scan.available) - 1
    if last >= 0 and nprobe < scan.lists:
        short = np.flatnonzero(positions[:, last] < 0)
        if len(short):
            more = _search_block(scan, xq[short], k, wanted, min(2 * nprobe, scan.lists))
            scores[short], positions[short] = more
    return scores, positions


def _search_uncut(
    scan: Scan, xq: np.ndarray, k: int, wanted: int, nprobe: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of one query, with as many candidates as are needed to have all equal ones."""
    while True:
        wanted = min(4 * wanted, scan.available)
        near, rows = scan.candidates(xq, wanted, nprobe)
        if wanted == scan.available or not _is_cut(near, k)[0]:
            scores, positions = best_k(*score(scan.index, xq, rows), k)
            return scores[0], positions[0]


def _is_cut(near: np.ndarray, k: int) -> np.ndarray:
    """Which queries may have lost one of the k best by a cut among equal scores: FAISS keeps any of
    those, and the ones of the lowest positions are wanted. (Q,) bool."""
    last = near.min(axis=1)
    above = (near > last[:, None] + SAME_SCORE).sum(axis=1)
    return (above < min(k, near.shape[1])) & (last > -np.inf)


def score(index: ColumnIndex, xq: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The inner products of (Q, D) queries with their candidates at positions (Q, n), in float32,
    and the positions, rising, both (Q, n); -inf and -1 where there is none."""
    rows.sort(axis=1)
    flat = rows.ravel()
    order = np.argsort(flat) if len(xq) > 1 else np.arange(len(flat))
    ordered = flat[order]
    ends = ordered.searchsorted(index.starts)
    index.fetch_candidates(ordered)
    scores = np.full(len(flat), -np.inf, dtype=np.float32)
    at_once = max(1, SCORED_AT_ONCE // xq.shape[1])
    for number, segment in enumerate(index.segments):
        start, end = ends[number], ends[number + 1]
        for left in range(start, end, at_once):
            block = order[left : min(end, left + at_once)]
            vectors = segment.vectors(index.column).take(flat[block] - index.starts[number])
            queries = xq[block // rows.shape[1]]
            scores[block] = np.einsum("nd,nd->n", vectors, queries)
    return scores.reshape(rows.shape), rows


def best_k(scores: np.ndarray, positions: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The first k of (Q, n) candidates by falling score; those of equal scores in their order.
    Padded to k."""
    order = (-scores).argsort(axis=1, kind="stable")[:, :k]
    scores, positions = columns_of(scores, order), columns_of(positions, order)
    if (missing := k - order.shape[1]) > 0:
        scores = np.pad(scores, ((0, 0), (0, missing)), constant_values=-np.inf)
        positions = np.pad(positions, ((0, 0), (0, missing)), constant_values=-1)
    return scores, positions

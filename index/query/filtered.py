"""A search whose filter lets few or many rows pass: it goes the way that query/filter_plan.py says.

By lists, candidates are scored again as without a filter. Where a filter leaves out the very rows
that are best for a query, the others are about equally far from it, and codes do not tell which of
them are the best. So a query is searched again by the full codes with more candidates, unless its
k-th best score is so far above the worst candidate's code that few rows can be missing by the error
of their codes.
"""

from __future__ import annotations

import numpy as np

from chiasm.index.hits import Explanation
from chiasm.index.query.coverage import scan_covering
from chiasm.index.query.filter_plan import ScanPlan, missed_share, plan_scan
from chiasm.index.query.scan import Allowed, ColumnIndex, Scan
from chiasm.index.query.search import (
    EXTRA_CANDIDATES,
    MAX_CANDIDATES,
    SAME_SCORE,
    best_k,
    score,
    search,
    search_scan,
)

MORE_CANDIDATES = 8  # times as many, where there were too few
# Of codes' errors that the worst candidate is below the k-th best row: where it is less, recall
# fell below 0.95 (`python -m benchmarks.index_filters --kinds own`).
DEVIATIONS = 2


def search_filtered(
    index: ColumnIndex, xq: np.ndarray, k: int, nprobe: int, allowed: Allowed | None
) -> tuple[np.ndarray, np.ndarray]:
    """As `search`, of the rows that may be found; nprobe: lists that are scanned without a
    filter."""
    if allowed is None:
        return search(index, xq, k, nprobe)
    way = explain(index, k, nprobe, allowed)
    if way.way == "all":
        return search(index, xq, k, nprobe)
    if way.way in ("subset", "selector"):
        return search_lists(index, xq, k, nprobe, allowed)
    return search_scan(index.exact_scan(allowed), xq, k, k + EXTRA_CANDIDATES, 0)


def explain(index: ColumnIndex, k: int, nprobe: int, allowed: Allowed) -> ScanPlan:
    """The way that such a search takes, and why."""
    projection = None if index.trained is None else index.trained.project_rows
    return plan_scan(
        *(index.passing(allowed), index.passing([None] * len(index.segments)), k, index.plan),
        dim=index.plan.dims if projection is None else len(projection),
        nprobe=nprobe,
        resident=index.resident,
    )


def explain_search(
    index: ColumnIndex, k: int, nprobe: int, allowed: Allowed | None, queries: int
) -> Explanation:
    """The way that `search_filtered` takes for so many queries, with or without a filter."""
    plan, rows = index.plan, index.passing([None] * len(index.segments))
    if allowed is not None:
        found = explain(index, k, nprobe, allowed)
        way, lists, candidates, reason = found.way, found.lists, found.candidates, found.reason
    elif plan.exact:
        way, lists, candidates = "exact", 0, k
        reason = f"exact: all {rows:,} rows are scored"
    else:
        way, lists, candidates = "lists", nprobe, plan.candidates(k, nprobe)
        why = "as its recall needs" if nprobe == plan.nprobe else "as the query wants"
        reason = f"lists: {nprobe:,} of {plan.lists:,} are scanned, {why}"
    return Explanation(
        column=index.column,
        index=str(plan),
        way=way,
        rows=rows,
        passing=None if allowed is None else index.passing(allowed),
        nprobe=nprobe,
        lists=lists,
        of_lists=plan.lists,
        candidates=candidates,
        queries=queries,
        reason=reason,
    )


def search_lists(
    index: ColumnIndex, xq: np.ndarray, k: int, nprobe: int, allowed: Allowed
) -> tuple[np.ndarray, np.ndarray]:
    """As `search_filtered`, by lists, whatever the plan says."""
    scan = index.scan(allowed)
    xq = np.ascontiguousarray(xq, dtype=np.float32)
    scores = np.full((len(xq), k), -np.inf, np.float32)
    positions = np.full((len(xq), k), -1, np.int64)
    if scan.available:
        wanted = index.plan.candidates(k, nprobe) + EXTRA_CANDIDATES
        _search_some(scan, xq, nprobe, wanted, (scores, positions))
    return scores, positions


def _search_some(
    scan: Scan, xq: np.ndarray, nprobe: int, wanted: int, best: tuple[np.ndarray, np.ndarray]
) -> None:
    """Write the best of each query into scores and positions (Q, k)."""
    wanted = min(wanted, scan.available)
    step = max(1, MAX_CANDIDATES // wanted)
    scores, positions = best
    k = min(scores.shape[1], wanted)
    missed = missed_share(scan.index.plan, nprobe)
    for start in range(0, len(xq), step):
        some = slice(start, start + step)
        near, rows = scan_covering(scan, xq[some], k, wanted, first=nprobe, missed=missed)
        order = np.argsort(rows, axis=1)  # as `score` leaves them
        near = np.take_along_axis(near, order, 1)
        exact, rows = score(scan.index, xq[some], rows)
        scores[some, :k], positions[some, :k] = best_k(exact, rows, k)
        if wanted < scan.available:
            again = start + np.flatnonzero(_may_miss(near, exact, scores[some, k - 1]))
            if len(again):
                more = scores[again], positions[again]
                _search_some(scan.plain(), xq[again], nprobe, MORE_CANDIDATES * wanted, more)
                scores[again], positions[again] = more


def _may_miss(near: np.ndarray, exact: np.ndarray, kth: np.ndarray) -> np.ndarray:
    """Whose rows may be above the k-th best score `kth` (Q,) and yet, by the errors of their codes,
    below all candidates: (Q,) bool. near, exact (Q, n): candidates' scores by codes and in full;
    equal ones may have been cut too."""
    worst = near.min(axis=1)
    full = worst > -np.inf
    near, exact = near[full], exact[full]
    error = exact - near
    reach = np.maximum(error.mean(axis=1), 0) + DEVIATIONS * error.std(axis=1)
    full[full] = kth[full] <= worst[full] + reach + SAME_SCORE
    return full

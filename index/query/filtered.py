"""A search whose filter lets few or many rows pass: it goes the way that query/filter_plan.py says.

How many rows of each list pass is counted where the codes are in memory; of lists that are mapped
it is not known, and as many are scanned as would hold the target if rows passed at random.
"""

from __future__ import annotations

import numpy as np

from chiasm.index.hits import Explanation
from chiasm.index.query.filter_plan import ScanPlan, plan_scan
from chiasm.index.query.scan import Allowed, ColumnIndex
from chiasm.index.query.search import EXTRA_CANDIDATES, search, search_scan


def search_filtered(
    index: ColumnIndex, xq: np.ndarray, k: int, nprobe: int, allowed: Allowed | None
) -> tuple[np.ndarray, np.ndarray]:
    """As `search`, of the rows that may be found; nprobe: lists that are scanned without a
    filter."""
    if allowed is None:
        return search(index, xq, k, nprobe)
    way = explain(index, k, nprobe, allowed, len(xq))
    if way.way == "all":
        return search(index, xq, k, nprobe)
    if way.way in ("subset", "selector"):
        scan = index.scan(allowed, way.target)
        return search_scan(scan, xq, k, way.candidates + EXTRA_CANDIDATES, way.lists)
    return search_scan(index.exact_scan(allowed), xq, k, k + EXTRA_CANDIDATES, 0)


def explain(
    index: ColumnIndex, k: int, nprobe: int, allowed: Allowed, queries: int = 1
) -> ScanPlan:
    """The way that such a search takes, and why."""
    dim = index.segments[0].record.dim if index.segments else 0
    passing, rows = index.passing(allowed), index.passing([None] * len(index.segments))
    return plan_scan(
        *(passing, rows, k, index.plan),
        dim=dim,
        queries=max(1, queries),
        nprobe=nprobe,
        resident=index.resident,
    )


def explain_search(
    index: ColumnIndex, k: int, nprobe: int, allowed: Allowed | None, queries: int
) -> Explanation:
    """The way that `search_filtered` takes for so many queries, with or without a filter."""
    plan, rows = index.plan, index.passing([None] * len(index.segments))
    if allowed is not None:
        found = explain(index, k, nprobe, allowed, queries)
        way, lists, candidates, reason = found.way, found.lists, found.candidates, found.reason
    elif plan.exact:
        way, lists, candidates = "exact", 0, k
        reason = f"exact: all {rows:,} rows are scored"
    else:
        way, lists, candidates = "lists", nprobe, k * plan.oversample
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

"""Which way does a filtered search take? By the share of rows that pass, and what each way costs.

    nothing    no row passes
    all        every row passes: as without a filter
    exact      the vectors of the rows that pass are all scored
    selector   codes are scanned, and FAISS asks a bitmap before it scores a row

A search without a filter has its recall because `nprobe` lists have the best rows. A filter that
goes with the query leaves fewer of these, one that goes against it leaves none. So a filtered query
scans lists until they hold a `target` of rows that pass; lists without any are passed over
(`lists_until`). The target is what scans of a filtered tuning need (`Plan.nprobe_for`, of filters
at random), and at least T s^POWER for a share s, where T rows are scanned without a filter.

Costs are nanoseconds of one thread, of which only the ratios matter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from chiasm.index.plan import Plan

SCORE_BYTE = 0.145  # to score a code, for each byte of it
TEST = 3.0  # to ask FAISS's bitmap for a row
LIST = 250.0  # to begin with a list
GATHER = 0.57  # to read a float16 of a vector somewhere and make it a float32, once a batch
MULTIPLY = 0.063  # of a float of a vector with one of a query, in a matrix product
POWER = 0.25
# Rows of which all are scored whatever it costs: it is below a millisecond, and exact.
ALWAYS_EXACT = 1000
# Rows that pass lie further from the query and nearer to each other, and the codes' rounding
# decides between more of them.
FILTERED_OVERSAMPLE = 4


@dataclass(frozen=True, slots=True)
class ScanPlan:
    """How a search with a filter scans. target: rows that pass in the lists that a query scans, at
    least. lists: how many these are about. candidates: kept by a query, to be scored again.
    reason: one line for a person."""

    way: Literal["nothing", "all", "exact", "selector"]
    target: int
    lists: int
    candidates: int
    reason: str


def plan_scan(
    passing: int, rows: int, k: int, plan: Plan, *, dim: int, queries: int, nprobe: int
) -> ScanPlan:
    """The way of a search for k results, where `passing` of `rows` may be found.

    plan, dim: of the column. queries: that are searched together, at least 1. nprobe: lists that a
    search without a filter scans, 0 for an exact column.
    """
    words = f"{passing:,} of {rows:,} rows pass ({100 * passing / max(1, rows):.3g} %)"
    if passing == 0:
        return ScanPlan("nothing", 0, 0, 0, f"nothing is scanned: {words}")
    if plan.exact:
        return ScanPlan("exact", passing, 0, k, f"exact: {words}, and the column is exact")
    if passing == rows:
        return ScanPlan("all", 0, nprobe, k * plan.oversample, f"as without a filter: {words}")
    share = passing / rows
    candidates = min(passing, k * plan.oversample * FILTERED_OVERSAMPLE)
    unfiltered = nprobe * rows / plan.lists
    tuned = nprobe / plan.nprobe * plan.nprobe_for(share) * passing / plan.lists
    target = math.ceil(max(unfiltered * share**POWER, tuned, candidates))
    target = min(passing, target)
    lists = min(plan.lists, math.ceil(target / passing * plan.lists))
    by_lists = LIST * lists + TEST * lists * rows / plan.lists
    by_lists += SCORE_BYTE * target * plan.code_size
    exact = passing * dim * (GATHER / queries + MULTIPLY)
    if passing <= ALWAYS_EXACT or exact <= by_lists:
        cost = f"about {exact / 1000:,.0f} us a query, by lists {by_lists / 1000:,.0f}"
        return ScanPlan("exact", passing, 0, k, f"exact: {words}; {cost}")
    reason = f"selector: {words}; some {lists:,} of {plan.lists:,} lists hold {target:,} of them"
    return ScanPlan("selector", target, lists, candidates, reason)


def lists_until(ranked: np.ndarray, passing: np.ndarray, target: int) -> np.ndarray:
    """The first lists of each query that hold `target` rows that pass: (Q, P) int64, -1 in place of
    lists without any and behind the last that is needed, as `search_preassigned` passes over it.

    ranked (Q, n) int64: lists of each query, best first. passing (L,): how many rows of each list
    pass. Where all n lists hold fewer, all that hold any are given.
    """
    counts = passing[ranked]
    before = np.cumsum(counts, axis=1) - counts
    needed = (before < target) & (counts > 0)
    width = int(np.flatnonzero(needed.any(axis=0)).max(initial=0)) + 1
    return np.ascontiguousarray(np.where(needed, ranked, -1)[:, :width])

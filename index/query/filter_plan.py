"""Which way does a filtered search take? By the share of rows that pass, and what each way costs.

    nothing    no row passes
    all        every row passes: as without a filter
    exact      the vectors of the rows that pass are all scored
    subset     a copy of the codes of the rows that pass is scanned (query/resident.py)
    selector   codes are scanned, and FAISS asks a bitmap before it scores a row

A search without a filter has its recall because `nprobe` lists have the best rows. A filter that
goes with the query leaves fewer of these, one that goes against it leaves none: with the same lists
recall falls to 0. So a filtered query scans lists until they hold a `target` of rows that pass;
lists without any are passed over (`lists_until`). The target is what scans of a filtered tuning
need (`Plan.nprobe_for`, of filters at random), and at least T s^POWER for a share s, where T rows
are scanned without a filter. With that, recall was 0.941 at the least, where without a filter it
was 0.960 (of the queries of that trial 0.945): shares from 0.001 to 0.95, filters at random, with
the queries and against them. POWER was chosen on these trials. T itself brings nothing more,
T s^0.5 falls below. Where a filter leaves out the very rows that are best for a query, the others
are about equally far, and no scan of codes finds the best: of queries without their better half
recall is 0.1. Only an exact scan answers these.

A subset is the fastest of the ways by lists at every share. A selector takes 1.2 to 4 times as
long, and is for codes that are not in memory, or too many to copy. To filter after the search, with
more candidates, was slower than a subset at every share, and had a recall of 0.4 to 0.6 against the
query. Costs are nanoseconds of one thread, of which only the ratios matter. All figures are from
`python -m benchmarks.filter_costs`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from chiasm.index.plan import Plan

SCORE_BYTE = 0.14  # to score a code, for each byte of it
TEST = 2.9  # to ask FAISS's bitmap for a row
LIST = 40.0  # to begin with a list
# What the constants above leave of a query's measured time: in all, and for each list, of which
# twice as many are ranked as are expected to be needed.
START, RANK = 40_000.0, 100.0
GATHER = 0.8  # to read a float16 of a vector somewhere and make it a float32, once a batch
MULTIPLY = 0.026  # of a float of a vector with one of a query, in a matrix product
PICK = 5.5  # to find the best of exact scores, for each
POWER = 0.25
# Rows of which all are scored whatever it costs: it is below a millisecond, and exact.
ALWAYS_EXACT = 1000
SUBSET_BYTES = 32 << 20  # of one filter's copy of codes: 0.6 million rows of 48 dimensions


@dataclass(frozen=True, slots=True)
class ScanPlan:
    """How a search with a filter scans. target: rows that pass in the lists that a query scans, at
    least. lists: how many these are about. candidates: kept by a query, to be scored again.
    reason: one line for a person."""

    way: Literal["nothing", "all", "exact", "subset", "selector"]
    target: int
    lists: int
    candidates: int
    reason: str


def plan_scan(
    passing: int,
    rows: int,
    k: int,
    plan: Plan,
    *,
    dim: int,
    queries: int,
    nprobe: int,
    resident: bool,
) -> ScanPlan:
    """The way of a search for k results, where `passing` of `rows` may be found.

    plan, dim: of the column. queries: that are searched together, at least 1. nprobe: lists that a
    search without a filter scans, 0 for an exact column. resident: whether the codes are in memory.
    """
    words = f"{passing:,} of {rows:,} rows pass ({100 * passing / max(1, rows):.3g} %)"
    if passing == 0:
        return ScanPlan("nothing", 0, 0, 0, f"nothing is scanned: {words}")
    if plan.exact:
        return ScanPlan("exact", passing, 0, k, f"exact: {words}, and the column is exact")
    if passing == rows:
        return ScanPlan("all", 0, nprobe, k * plan.oversample, f"as without a filter: {words}")
    share = passing / rows
    candidates = min(passing, k * plan.oversample)
    unfiltered = nprobe * rows / plan.lists
    tuned = nprobe / plan.nprobe * plan.nprobe_for(share) * passing / plan.lists
    target = math.ceil(max(unfiltered * share**POWER, tuned, candidates))
    target = min(passing, target)
    lists = min(plan.lists, math.ceil(target / passing * plan.lists))
    way = "subset" if resident and fits_subset(passing, plan) else "selector"
    by_lists = START + (LIST + RANK) * lists + SCORE_BYTE * target * plan.code_size
    if way == "selector":
        by_lists += TEST * lists * rows / plan.lists
    exact = passing * (dim * (GATHER / queries + MULTIPLY) + PICK)
    if passing <= ALWAYS_EXACT or exact <= by_lists:
        cost = f"about {exact / 1000:,.0f} us a query, by lists {by_lists / 1000:,.0f}"
        return ScanPlan("exact", passing, 0, k, f"exact: {words}; {cost}")
    reason = f"{way}: {words}; some {lists:,} of {plan.lists:,} lists hold {target:,} of them"
    return ScanPlan(way, target, lists, candidates, reason)


def fits_subset(passing: int, plan: Plan) -> bool:
    """Whether the codes of so many rows, and their row numbers, may be copied for a filter."""
    return passing * (plan.code_size + 8) <= SUBSET_BYTES


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

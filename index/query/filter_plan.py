"""Which way does a filtered search take? By the share of rows that pass, and what each way costs.

    nothing    no row passes
    all        every row passes: as without a filter
    exact      the vectors of the rows that pass are all scored
    subset     a copy of the codes of the rows that pass is scanned (query/resident.py)
    selector   codes are scanned, and FAISS asks a bitmap before it scores a row

Which lists the last two scan is found query by query (query/coverage.py). What they cost is
estimated for a filter at random; where it goes against the query they cost more, yet less than
scoring all vectors that pass, whose numbers are several times as many as those of codes.

A subset is mostly the faster of the ways by lists; a selector takes up to 1.8 times as long, and is
for codes that are not in memory, or too many to copy. To filter after the search, with more
candidates, is no way: it was slower at every share, and found half of the best against the query.
Costs are nanoseconds of one thread, of which only the ratios matter. Those of codes are of mapped
ones, scanned by 8 bits alone; in memory, by 4 bits first, SCORE_BYTE, TEST and LIST are 0.04, 0.8
and 160 (`python -m benchmarks.filter_costs`), by which the same ways are chosen at all its shares.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from chiasm.index.plan import Plan

SCORE_BYTE = 0.14  # to score a code, for each byte of it
TEST = 2.9  # to ask FAISS's bitmap for a row
LIST = 40.0  # to begin with a list
# What the constants above leave of a query's measured time: in all, and for each list there is.
START, RANK = 40_000.0, 40.0
GATHER = 0.8  # to read a float16 of a vector somewhere and make it a float32, once a batch
MULTIPLY = 0.026  # of a float of a vector with one of a query, in a matrix product
PICK = 5.5  # to find the best of exact scores, for each
PARQUET = 700_000.0  # to read the group of rows of a vector that is in Parquet alone
BATCH = 64  # queries that share the reading of vectors; answers do not depend on their number
POWER = 0.25  # lists that are scanned grow so with 1 / share, for filters at random
# Rows of which all are scored whatever it costs: it is below a millisecond, and exact.
ALWAYS_EXACT = 1000
# Where no build has measured it: of plans that were tuned for a recall of 0.95 (results.md).
MISSED = 0.005
SUBSET_BYTES = 32 << 20  # of one filter's copy of codes: 0.4 million rows of 48 dimensions


@dataclass(frozen=True, slots=True)
class ScanPlan:
    """How a search with a filter scans. lists: how many a query scans, about, if rows pass at
    random. candidates: kept by a query, to be scored again, at least. reason: one line for a
    person."""

    way: Literal["nothing", "all", "exact", "subset", "selector"]
    lists: int
    candidates: int
    reason: str


def plan_scan(
    passing: int, rows: int, k: int, plan: Plan, *, dim: int, nprobe: int, resident: bool
) -> ScanPlan:
    """The way of a search for k results, where `passing` of `rows` may be found.

    plan, dim: of the column. nprobe: lists that a search without a filter scans, 0 for an exact
    column. resident: whether the codes are in memory.
    """
    words = f"{passing:,} of {rows:,} rows pass ({100 * passing / max(1, rows):.3g} %)"
    if passing == 0:
        return ScanPlan("nothing", 0, 0, f"nothing is scanned: {words}")
    if plan.exact:
        return ScanPlan("exact", 0, k, f"exact: {words}, and the column is exact")
    if passing == rows:
        return ScanPlan("all", nprobe, plan.candidates(k, nprobe), f"as without a filter: {words}")
    share = passing / rows
    lists = min(plan.lists, nprobe * share**-POWER)
    way = "subset" if resident and fits_subset(passing, plan) else "selector"
    scanned = max(k * plan.oversample, lists / plan.lists * passing)
    by_lists = START + RANK * plan.lists + LIST * lists + SCORE_BYTE * scanned * plan.code_size
    if way == "selector":
        by_lists += TEST * lists * rows / plan.lists
    exact = passing * (dim * (GATHER / BATCH + MULTIPLY) + PICK)
    always, candidates = ALWAYS_EXACT, min(passing, plan.candidates(k, nprobe))
    if plan.vectors == "none":
        exact, by_lists = exact + PARQUET * passing / BATCH, by_lists + PARQUET * candidates
        always = candidates
    costs = f"about {exact / 1000:,.0f} us a query, by lists {by_lists / 1000:,.0f} or more"
    if passing <= always or exact <= by_lists:
        return ScanPlan("exact", 0, k, f"exact: {words}; {costs}")
    left = f"until the others are expected to hold {100 * missed_share(plan, nprobe):.2g} %"
    reason = f"{way}: {words}; exact {costs}; lists {left} of the best rows"
    return ScanPlan(way, math.ceil(lists), candidates, reason)


def missed_share(plan: Plan, nprobe: int) -> float:
    """The share of the best rows that lists left out are expected to hold, at most; less where a
    search is to scan more lists than the plan says."""
    if nprobe >= plan.lists:
        return 0.0
    return min(1.0, (plan.missed or MISSED) * plan.nprobe / max(1, nprobe))


def fits_subset(passing: int, plan: Plan) -> bool:
    """Whether the codes of so many rows, and their row numbers, may be copied for a filter."""
    return passing * plan.row_bytes <= SUBSET_BYTES

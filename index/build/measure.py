"""Recall and time of one column's index, by the search that answers people.

Every measurement runs on one thread, whatever this machine has: threads answer different queries,
so their number changes how many are answered a second, not what one costs. Costs that plans are
compared by are the thread's processor time, which other processes change little; latencies are by
the wall clock. The number of threads is set back afterwards.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from chiasm.index.build.report import KS, Measured
from chiasm.index.build.samples import Queries
from chiasm.index.query import (
    Allowed,
    ColumnIndex,
    Ranked,
    recall_of,
    search,
    search_filtered,
    search_scan,
    without_own,
)

BATCH = 64  # queries that are searched together
SINGLE = 300  # queries that are timed one at a time, or give a recall that promises nothing
FILTERED = "filtered"
ROUNDS = 3  # plans differ by less than other processes disturb a single one
FILTERED_SHARE = 0.1  # of the rows: what the filters let pass that plans are measured with
STEP = 1.25  # of the number of lists, around a guess that is mostly right to a fifth

Search = Callable[[ColumnIndex, np.ndarray, int, int, Any], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Case:
    """Queries of one kind with their exact answers. exact (Q, K) float32: the best scores, without
    own rows. allowed: the rows that a filter lets pass, None for all. ranked: where the scores of
    results are not exact, the best rows of each query, own ones too, to tell what results are."""

    queries: Queries
    exact: np.ndarray
    allowed: Allowed | None = None
    ranked: Ranked | None = None

    def first(self, count: int | None) -> Case:
        """So many of its queries, None for all."""
        ranked = None if self.ranked is None else self.ranked[:count]
        return Case(self.queries[:count], self.exact[:count], self.allowed, ranked)


@contextmanager
def one_thread() -> Iterator[None]:
    """FAISS and numpy on one thread."""
    with threadpool_limits(1):
        yield


def recalls(
    index: ColumnIndex,
    case: Case,
    k: int,
    nprobe: int | None = None,
    *,
    wanted: int = 0,
    by: Search = search_filtered,
) -> np.ndarray:
    """The recall@k of each query, own rows left out: (Q,) float64. nprobe: lists that are scanned,
    None for those of the plan. wanted: candidates of a query, 0 for as many as the plan says. by:
    the search, which is that of people."""
    xq, own, allowed = case.queries.vectors, case.queries.own, case.allowed
    index = replace(index, any_of_equal=True)  # recall is of scores
    extra = int(not np.isnan(own).all())
    lists = index.plan.nprobe if nprobe is None else nprobe

    def some(xq: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if wanted:
            return search_scan(index.scan(allowed), xq, k + extra, wanted + extra, lists)
        return by(index, xq, k + extra, lists, allowed)

    blocks = [some(xq[start : start + BATCH]) for start in range(0, len(xq), BATCH)]
    scores, positions = (np.concatenate(one) for one in zip(*blocks, strict=True))
    found = scores if case.ranked is None else case.ranked.scores_of(positions)
    return recall_of(without_own(found, own) if extra else found, case.exact, k)


def seconds_per_query(
    index: ColumnIndex, xq: np.ndarray, k: int, nprobe: int, rounds: int = ROUNDS
) -> float:
    """Of the processor, in batches; the least of some rounds."""
    spent = []
    for _ in range(rounds):
        began = time.thread_time()
        for start in range(0, len(xq), BATCH):
            search(index, xq[start : start + BATCH], k, nprobe)
        spent.append((time.thread_time() - began) / max(1, len(xq)))
    return max(min(spent), 1e-9)


def latencies(index: ColumnIndex, xq: np.ndarray, k: int, nprobe: int) -> tuple[float, float]:
    """The median and the 99th percentile of single queries, in milliseconds. Of some rounds the
    least of each query: other processes lengthen some."""
    spent = np.empty((ROUNDS, len(xq[:SINGLE])))
    for round_ in spent:
        for number, query in enumerate(xq[:SINGLE]):
            began = time.perf_counter()
            search(index, query[None], k, nprobe)
            round_[number] = time.perf_counter() - began
    p50, p99 = np.percentile(spent.min(axis=0), [50, 99]) * 1e3
    return float(p50), float(p99)


def least_nprobe(
    recall_at: Callable[[int], float], enough: float, guess: int, most: int
) -> int | None:
    """The least number of lists, to a sixteenth, whose recall is enough; None where that of all
    lists, `most`, is not. recall_at grows with the number of lists. guess: to begin with, from
    where steps of growing width are made."""
    low, high, step = 0, min(max(1, guess), most), STEP
    if recall_at(high) >= enough:
        while (low := int(high / step)) and recall_at(low) >= enough:
            high, step = low, step * step
    else:
        while True:
            if high == most:
                return None
            low, high, step = high, min(most, math.ceil(high * step)), step * step
            if recall_at(high) >= enough:
                break
    while high - low > max(1, high // 16):
        middle = max(low + 1, int(math.sqrt(low * high)) if low else high // 2)
        if recall_at(middle) >= enough:
            high = middle
        else:
            low = middle
    return high


def measure(
    index: ColumnIndex,
    cases: dict[str, Case],
    at: int,
    *,
    timed: ColumnIndex,
    query_seconds: float,
    size: int,
    seconds: float,
    reached: bool,
    answered: Mapping[str, np.ndarray] | None = None,
) -> Measured:
    """What the report says of an index that is searched as its plan says. cases: by kind, of which
    some queries are asked where recall is not at `at`. answered: recalls at `at` that are known,
    by kind. timed:
    the index whose latencies are taken, by queries of the first kind. query_seconds: of the
    processor, in batches. size, seconds: bytes, and of its build."""
    plan, answered = index.plan, answered or {}
    main = next(iter(cases.values())).queries.vectors
    recall = {}
    for kind, case in cases.items():
        by_k = {k: recalls(index, case.first(SINGLE), k) for k in depths(at) if k != at}
        by_k[at] = answered[kind] if kind in answered else recalls(index, case, at)
        recall[kind] = {k: round(float(np.nanmean(by_k[k])), 4) for k in depths(at)}
    p50, p99 = latencies(timed, main, at, timed.plan.nprobe)
    return Measured(
        plan=str(plan),
        rows=int(index.starts[-1]),
        nprobe=plan.nprobe,
        oversample=plan.oversample,
        recall=recall,
        bytes=size,
        build_seconds=round(seconds, 3),
        p50_ms=round(p50, 4),
        p99_ms=round(p99, 4),
        queries_per_second=round(1 / query_seconds, 1),
        reached=reached,
        space="" if plan.exact else plan.space,
        spread=plan.spread,
    )


def depths(at: int) -> Sequence[int]:
    """The k of the recalls that a report gives."""
    return sorted({*KS, at})


def random_filter(rows: Sequence[int], seed: int) -> list[np.ndarray]:
    """A filter that lets FILTERED_SHARE of the rows pass, by no property of theirs: for each
    segment of so many rows (rows,) bool."""
    rng = np.random.default_rng(seed)
    passes = [rng.random(count) < FILTERED_SHARE for count in rows]
    for some in passes:
        some.flags.writeable = False  # so that what a search prepares for them is kept
    return passes

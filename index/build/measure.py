"""Recall and time of one column's index, by the search that answers people.

Every measurement runs on one thread, whatever this machine has: threads answer different queries,
so their number changes how many are answered a second, not what one costs. Costs that plans are
compared by are the thread's processor time, which other processes change little; latencies are by
the wall clock. The number of threads is set back afterwards.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from threadpoolctl import threadpool_limits

from chiasm.index.build.report import KS, Measured
from chiasm.index.build.samples import Queries
from chiasm.index.plan import FILTERED_SHARE, Plan
from chiasm.index.query import Allowed, ColumnIndex, recall_of, search, without_own

BATCH = 64  # queries that are searched together
SINGLE = 300  # queries that are timed one at a time
FILTERED = "filtered"


@dataclass(frozen=True)
class Case:
    """Queries of one kind with their exact answers. exact (Q, K) float32: the best scores, without
    own rows. allowed: the rows that a filter lets pass, None for all."""

    queries: Queries
    exact: np.ndarray
    allowed: Allowed | None = None

    def first(self, count: int) -> Case:
        return Case(self.queries[:count], self.exact[:count], self.allowed)


@contextmanager
def one_thread() -> Iterator[None]:
    """FAISS and numpy on one thread."""
    with threadpool_limits(1):
        yield


def found_scores(index: ColumnIndex, case: Case, k: int, nprobe: int) -> np.ndarray:
    """The scores of the k results of each query, own rows left out: (Q, k) float32."""
    xq, own = case.queries.vectors, case.queries.own
    extra = int(not np.isnan(own).all())
    scores = [
        search(index, xq[start : start + BATCH], k + extra, nprobe, case.allowed)[0]
        for start in range(0, len(xq), BATCH)
    ]
    found = np.concatenate(scores)
    return without_own(found, own) if extra else found


def recalls(index: ColumnIndex, case: Case, k: int, nprobe: int) -> np.ndarray:
    """The recall@k of each query: (Q,) float64."""
    return recall_of(found_scores(index, case, k, nprobe), case.exact, k)


def with_oversample(index: ColumnIndex, oversample: int) -> ColumnIndex:
    """The same index with another number of candidates a result."""
    return replace(index, plan=replace(index.plan, oversample=oversample))


def seconds_per_query(index: ColumnIndex, xq: np.ndarray, k: int, nprobe: int) -> float:
    """Of the processor, in batches; the lesser of two rounds."""
    rounds = []
    for _ in range(2):
        began = time.thread_time()
        for start in range(0, len(xq), BATCH):
            search(index, xq[start : start + BATCH], k, nprobe)
        rounds.append((time.thread_time() - began) / max(1, len(xq)))
    return max(min(rounds), 1e-9)


def latencies(index: ColumnIndex, xq: np.ndarray, k: int, nprobe: int) -> tuple[float, float]:
    """The median and the 99th percentile of single queries, in milliseconds."""
    spent = []
    for query in xq[:SINGLE]:
        began = time.perf_counter()
        search(index, query[None], k, nprobe)
        spent.append(time.perf_counter() - began)
    p50, p99 = np.percentile(spent, [50, 99]) * 1e3
    return float(p50), float(p99)


def least_nprobe(
    recall_at: Callable[[int], float], enough: float, guess: int, most: int
) -> int | None:
    """The least number of lists, to a sixteenth, whose recall is enough; None where that of all
    lists, `most`, is not. recall_at grows with the number of lists. guess: to begin with."""
    low, high = 0, min(max(1, guess), most)
    while recall_at(high) < enough:
        if high == most:
            return None
        low, high = high, min(most, 2 * high)
    while high - low > max(1, high // 16):
        middle = max(low + 1, int(math.sqrt(low * high)) if low else high // 2)
        if recall_at(middle) >= enough:
            high = middle
        else:
            low = middle
    return high


def measure(
    index: ColumnIndex, cases: dict[str, Case], at: int, *, size: int, seconds: float, reached: bool
) -> Measured:
    """What the report says of an index that is searched as its plan says. cases: by kind, the first
    being the one whose time is taken. size, seconds: bytes, and of its build."""
    plan: Plan = index.plan
    main = next(iter(cases.values())).queries.vectors
    recall = {}
    for kind, case in cases.items():
        nprobe = plan.nprobe_for(FILTERED_SHARE) if kind == FILTERED else plan.nprobe
        by_k = {k: recalls(index, case, k, nprobe) for k in depths(at)}
        recall[kind] = {k: round(float(np.nanmean(some)), 4) for k, some in by_k.items()}
    rate = 1 / seconds_per_query(index, main, at, plan.nprobe)
    p50, p99 = latencies(index, main, at, plan.nprobe)
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
        queries_per_second=round(rate, 1),
        reached=reached,
    )


def depths(at: int) -> Sequence[int]:
    """The k of the recalls that a report gives."""
    return sorted({*KS, at})


def random_filter(rows: Sequence[int], seed: int) -> list[np.ndarray]:
    """A filter that lets FILTERED_SHARE of the rows pass, by no property of theirs: for each
    segment of so many rows (rows,) bool."""
    rng = np.random.default_rng(seed)
    return [rng.random(count) < FILTERED_SHARE for count in rows]

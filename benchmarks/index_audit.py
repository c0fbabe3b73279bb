"""Audits: what noting queries costs, what an audit costs, and how soon a broken promise is found.

    python -m benchmarks.index_audit --rows 100000

An index by lists over made vectors is searched one query at a time and in batches of 64, while what
notes the queries is timed in place: in a loop of its own it takes a third. One thread. Then recalls
are drawn of which the mean is known: how often is a promise that is just kept called broken, looked
at after every 50 audited queries up to 20,000, and after how many is one called so that is missed
by so much?
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.vector_collection import write_collection
from chiasm.index import IndexSettings, build_index, open_collection
from chiasm.index.audit import AuditedRecall
from chiasm.index.query import RecentQueries, recent_queries

DIM, K = 256, 10
PROMISE = 0.95
EVERY = 50  # queries that are audited at once, of simulated audits
ROUNDS = 50  # of ten calls each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--seeds", type=int, default=200)
    options = parser.parse_args()
    with threadpool_limits(1), tempfile.TemporaryDirectory() as place:
        rng = np.random.default_rng(0)
        xb = _vectors(rng, options.rows)
        path = Path(place) / "c"
        write_collection(path, xb, copies=False)
        settings = IndexSettings(tune=False, kind="projected")
        build_index(str(path), columns=["image"], settings=settings)
        measure(open_collection(path), _vectors(rng, 4096))
    simulate(options.seeds)


def _vectors(rng: np.random.Generator, count: int) -> np.ndarray:
    """Unit vectors near a subspace of 48 dimensions."""
    inner = np.linalg.qr(np.random.default_rng(1).normal(size=(DIM, 48)))[0].T
    drawn = rng.normal(size=(count, 48)) @ inner
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


class Timed:
    """Takes the nanoseconds of each call. recent: what notes queries, None for nothing, which gives
    what the clock itself takes."""

    def __init__(self, recent: RecentQueries | None) -> None:
        self.recent: Any = recent
        self.spent: list[int] = []

    def add(self, *arguments: Any) -> None:
        began = time.perf_counter_ns()
        if self.recent is not None:
            self.recent.add(*arguments)
        self.spent.append(time.perf_counter_ns() - began)


def measure(index: Any, xq: np.ndarray) -> None:
    """What noting queries and auditing them costs."""
    print(f"{len(index):,} x {DIM}, {index.column('image').plan}")
    kept = index.audits.recent
    for size in (1, 64):
        full = RecentQueries(DIM)
        full.add(np.ones((1_000_000, DIM), np.float32), "image", "vector", K)
        timed = {"empty": Timed(None), "kept": Timed(RecentQueries(DIM)), "counted": Timed(full)}
        searching = []
        for _ in range(ROUNDS):
            timed["kept"].recent.take(1.0)
            for one in timed.values():
                index.audits.recent = one
                searching.append(_seconds(index, xq[: 10 * size], size) * size * 1e6)
        search = statistics.median(searching)
        empty, *others = (statistics.median(one.spent) / 1000 for one in timed.values())
        print(
            f"calls of {size} queries: {search:.0f} us of the processor; noting them: "
            + ", ".join(
                f"{spent - empty:.2f} us where they are {name} ({(spent - empty) / search:.2%})"
                for name, spent in zip(("kept", "counted"), others, strict=True)
            )
        )
    index.audits.recent = kept
    xq = xq[: recent_queries.KEPT]
    index.audits.recent.take(1.0)
    index.search_vectors(xq, K)
    for share in (0.01, 0.1, 1.0):
        began = time.process_time()
        index.audit(share, raise_probes=False)
        spent, queries = time.process_time() - began, round(share * len(xq))
        print(f"audit of {queries:,}: {spent:.2f} s, {spent / queries * 1e3:.2f} ms a query")
        index.search_vectors(xq, K)
    print(f"it found: {index.audited['image']['vector']}")


def _seconds(index: Any, xq: np.ndarray, size: int) -> float:
    """Of the processor, for a query."""
    began = time.process_time()
    for start in range(0, len(xq), size):
        index.search_vectors(xq[start : start + size], K)
    return (time.process_time() - began) / len(xq)


def simulate(seeds: int) -> None:
    """Promises that are kept, and that are missed."""
    wrong = sum(_called_broken(seed, PROMISE, 20_000) is not None for seed in range(seeds))
    print(f"promise of {PROMISE:g} just kept: called broken in {wrong} of {seeds} runs")
    for missed in (0.005, 0.01, 0.02, 0.05):
        found = [_called_broken(seed, PROMISE - missed, 100_000) for seed in range(min(seeds, 50))]
        counts = sorted(one or 100_000 for one in found)
        print(
            f"missed by {missed:g}: found after {counts[len(counts) // 2]:,} audited queries, "
            f"in nine of ten runs after {counts[len(counts) * 9 // 10]:,}"
        )


def _called_broken(seed: int, mean: float, most: int) -> int | None:
    """After how many audited queries, None where it is not. Recalls are as those of queries are:
    most are 1, some far below."""
    rng, found = np.random.default_rng(seed), None
    for number in range(EVERY, most + 1, EVERY):
        recalls = rng.binomial(10, rng.beta(8 * mean, 8 * (1 - mean), EVERY)) / 10
        some = AuditedRecall.of("image", "text", 1, 10, PROMISE, recalls)
        found = some if found is None else found.with_more(some)
        if found.broken:
            return number
    return None


if __name__ == "__main__":
    main()

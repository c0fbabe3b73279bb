"""What each way of a filtered search costs and finds, and the constants of index/query/filter_plan.

    python -m benchmarks.filter_costs [--rows 150000] [--lists 1024]

Vectors are made as CLIP's lie: pictures and texts in narrow cones apart, a text says a part of its
picture's latent. The index is a projected one, of 48 dimensions, scanned as searches scan it, by
one thread, in batches of 64; without a filter as few lists as have recall@10 >= 0.95.

Filters let a share of the rows pass: at random, or those whose vectors have most of a direction. Of
the texts those that have most of it too are asked for filters that go with the query, those that
have least of it for filters that go against it. The search that goes the planned way is measured
over a collection by `python -m benchmarks.index_filters`.

Prints tables, and writes benchmarks/results/filter_costs.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine, table, tell_and_keep
from chiasm.index.build.project import fit_projection
from chiasm.index.build.trials import SAMPLE, SampleSegment
from chiasm.index.faiss_runtime import load_faiss
from chiasm.index.plan import Plan
from chiasm.index.query import ColumnIndex, filter_plan, search, search_lists
from chiasm.index.query.filter_plan import plan_scan
from chiasm.index.query.search import EXTRA_CANDIDATES, search_scan
from chiasm.index.segments import Float16Vectors, as_float32
from chiasm.index.segments.trained import Trained, code_ranges

RESULT = Path(__file__).parent / "results" / "filter_costs.json"
WIDTH, LATENT, TOPICS, DIMS, K, OVERSAMPLE, BATCH = 256, 48, 2000, 48, 10, 4, 64
SHARES = (0.95, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.001, 0.0001)
WAYS = ("exact", "subset", "selector")


def make_vectors(rows: int, texts: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (rows, WIDTH) and texts (texts, WIDTH), float32, unit rows."""
    rng = np.random.default_rng(1)
    scale = np.exp(-np.arange(LATENT) / 18)
    centers = rng.standard_normal((TOPICS, LATENT)) * scale
    weights = rng.pareto(1.2, TOPICS) + 0.02
    axes = np.linalg.qr(rng.standard_normal((WIDTH, LATENT)))[0]
    cones = rng.standard_normal((2, WIDTH))
    cones *= 0.66 / np.linalg.norm(cones, axis=1, keepdims=True)

    def drawn(count: int, cone: np.ndarray, dropped: np.ndarray) -> np.ndarray:
        topics = rng.choice(TOPICS, (count, 3), p=weights / weights.sum())
        latent = np.einsum("nt,ntl->nl", rng.dirichlet([1, 1, 1], count), centers[topics])
        latent += 0.45 * scale * rng.standard_normal((count, LATENT))
        latent *= rng.random((count, LATENT)) > dropped
        x = latent @ axes.T + 0.35 * rng.standard_normal((count, WIDTH)) / np.sqrt(WIDTH)
        x = 0.75 * x / np.linalg.norm(x, axis=1, keepdims=True) + cone
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)

    starts = range(0, rows, 25_000)
    parts = [drawn(min(25_000, rows - first), cones[0], np.zeros(LATENT)) for first in starts]
    return np.concatenate(parts), drawn(texts, cones[1], 0.5 * np.linspace(0.3, 1, LATENT))


class Bench:
    """An index in memory, and the texts that are asked."""

    def __init__(self, rows: int, lists: int) -> None:
        faiss = load_faiss()
        faiss.omp_set_num_threads(1)
        self.xb, texts = make_vectors(rows, 5384)
        self.xq, self.rows = np.ascontiguousarray(texts[5000:]), rows
        row_map, query_map = fit_projection(texts[:5000], self.xb[:20_000], DIMS)
        coded = self.xb @ row_map
        kmeans = faiss.Kmeans(DIMS, lists, niter=6, max_points_per_centroid=48)
        kmeans.train(coded)
        plan = Plan("projected", lists, 1, "projected", DIMS, "SQ8", oversample=OVERSAMPLE)
        bias, ranges = np.zeros(lists, np.float32), code_ranges(coded[:20_000])
        self.trained = Trained(plan, kmeans.centroids, bias, ranges, row_map, query_map)
        self.raw = self.xb.astype(np.float16)
        self.scores = self.xq @ as_float32(self.raw).T
        self.index = self.trained.empty_index()
        assigned = self.trained.assign(self.xb, coded)
        self.index.add_core(rows, faiss.swig_ptr(coded), None, faiss.swig_ptr(assigned))
        self.plan = plan

    def column(self) -> ColumnIndex:
        """The index as searches have it, with nothing prepared."""
        segment: Any = SampleSegment(Float16Vectors(self.raw), self.index)
        return ColumnIndex([segment], SAMPLE, self.plan, self.trained)

    def ways(self, allowed: np.ndarray) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
        """Functions from queries to their K best scores."""
        allowed.flags.writeable = False
        by_copy, by_bitmap, nprobe = self.column(), self.column(), self.plan.nprobe
        copied = filter_plan.SUBSET_BYTES
        filter_plan.SUBSET_BYTES = 0
        by_bitmap.scan([allowed])
        filter_plan.SUBSET_BYTES = copied
        return {
            "exact": lambda xq: search_scan(
                by_copy.exact_scan([allowed]), xq, K, K + EXTRA_CANDIDATES, 0
            )[0],
            "subset": lambda xq: search_lists(by_copy, xq, K, nprobe, [allowed])[0],
            "selector": lambda xq: search_lists(by_bitmap, xq, K, nprobe, [allowed])[0],
        }

    def measure(
        self, way: Callable[[np.ndarray], np.ndarray], asked_rows: np.ndarray, allowed: np.ndarray
    ) -> tuple[float, float]:
        """Recall@K, and microseconds a query."""
        xq, seconds, found = self.xq[asked_rows], [], np.empty(0)
        for _ in range(3):
            started = time.thread_time()
            found = np.concatenate([way(xq[at : at + BATCH]) for at in range(0, len(xq), BATCH)])
            seconds.append((time.thread_time() - started) / len(xq))
        count = min(K, int(allowed.sum()))
        exact = -np.partition(-self.scores[asked_rows][:, allowed], count - 1, axis=1)
        last = exact[:, :count].min(axis=1, keepdims=True)
        return float(np.mean(found[:, :count] >= last - 1e-6)), min(seconds) * 1e6


def tune(bench: Bench) -> tuple[float, float]:
    """Sets the least number of lists; returns recall and microseconds without a filter."""
    everything, column = np.ones(bench.rows, bool), bench.column()
    for nprobe in range(8, bench.plan.lists, 8):
        column.plan = replace(bench.plan, nprobe=nprobe)

        def unfiltered(xq: np.ndarray, nprobe: int = nprobe) -> np.ndarray:
            return search(column, xq, K, nprobe)[0]

        recall, cost = bench.measure(unfiltered, np.arange(len(bench.xq)), everything)
        if recall >= 0.95:
            bench.plan = replace(bench.plan, nprobe=nprobe)
            return recall, cost
    raise SystemExit("no number of lists has a recall of 0.95")


def filters(bench: Bench, share: float) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By kind: the rows that pass, and the queries that are asked."""
    rng = np.random.default_rng(5)
    direction = bench.xb[rng.integers(bench.rows)] - bench.xb.mean(0)
    order = np.argsort(bench.xq @ direction)
    least = max(K, round(bench.rows * share))

    def most(values: np.ndarray) -> np.ndarray:
        return values >= np.partition(values, bench.rows - least)[bench.rows - least]

    attribute = most(bench.xb @ direction)
    return {
        "random": (most(rng.random(bench.rows)), order[128:256]),
        "with": (attribute, order[-128:]),
        "against": (attribute, order[:128]),
    }


def constants(bench: Bench) -> dict[str, float]:
    """Nanoseconds, as index/query/filter_plan.py has them."""
    every = np.arange(len(bench.xq))[:BATCH]
    xq = bench.xq[every]
    lists = bench.trained.rank(xq, bench.trained.queries(xq), bench.plan.lists)
    all_rows = bench.rows

    def nanoseconds(function: Callable[[], Any]) -> float:
        taken = []
        for _ in range(3):
            started = time.thread_time()
            function()
            taken.append(time.thread_time() - started)
        return min(taken) * 1e9

    coded, rng, count = bench.trained.queries(xq), np.random.default_rng(0), K * OVERSAMPLE
    (whole,) = bench.column().scan(None).memory
    nothing = whole.selecting(np.zeros(all_rows, bool))
    few = whole.subset(rng.random(all_rows) < 0.01)
    scored = nanoseconds(lambda: whole.candidates(coded, lists, count)) / BATCH
    tested = nanoseconds(lambda: nothing.candidates(coded, lists, count)) / BATCH
    score = scored / all_rows
    begun = nanoseconds(lambda: few.candidates(coded, lists, count)) / BATCH - score * len(few)
    # Other rows each time, so that they come from memory and not from a cache.
    gathered = nanoseconds(lambda: as_float32(bench.raw[rng.integers(all_rows, size=2000)])) / 2000
    block = as_float32(bench.raw[rng.integers(all_rows, size=2000)])
    multiplied = nanoseconds(lambda: xq @ block.T) / 2000 / BATCH
    product = xq @ block.T
    picked = nanoseconds(lambda: np.partition(-product, K, axis=1)) / product.size
    return {
        "SCORE_BYTE": score / bench.plan.code_size,
        "TEST": tested / all_rows,
        "LIST": begun / np.count_nonzero(few.counts),
        "GATHER": gathered / WIDTH,
        "MULTIPLY": multiplied / WIDTH,
        "PICK": picked,
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=150_000)
    parser.add_argument("--lists", type=int, default=1024)
    parser.add_argument("--to", type=Path, default=RESULT)
    given = parser.parse_args()
    bench = Bench(given.rows, given.lists)
    recall, cost = tune(bench)
    record: dict[str, Any] = {"machine": machine(), "rows": given.rows, "lists": given.lists}
    record |= {"nprobe": bench.plan.nprobe, "constants": constants(bench)}
    record |= {"unfiltered": {"recall": recall, "us": cost}}
    (whole,) = bench.column().scan(None).memory
    started = time.thread_time()
    whole.subset(np.arange(bench.rows) % 10 == 0)
    record["copy of a tenth, ms"] = (time.thread_time() - started) * 1e3
    record["filtered"] = []
    lines: list[list[object]] = []
    for share in SHARES:
        for kind, (allowed, queries) in filters(bench, share).items():
            measured = {
                name: bench.measure(way, queries, allowed)
                for name, way in bench.ways(allowed).items()
                if name != "exact" or share < 0.2
            }
            passing = int(allowed.sum())
            size = {"dim": WIDTH, "nprobe": bench.plan.nprobe, "resident": True}
            plan = plan_scan(passing, bench.rows, K, bench.plan, **size)
            record["filtered"].append(
                {"share": share, "kind": kind, "planned": plan.way, "reason": plan.reason}
                | {name: {"recall": r, "us": us} for name, (r, us) in measured.items()}
            )
            cells = [f"{r:.3f} {us:.0f}" for r, us in measured.values()]
            cells = ["", *cells] if "exact" not in measured else cells
            lines.append([share, kind, *cells, plan.way])
    tell_and_keep(record, given.to)
    print(table(["share", "kind", *WAYS, "planned"], lines))


if __name__ == "__main__":
    main()

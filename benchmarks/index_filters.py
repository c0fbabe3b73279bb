"""Filtered search: recall and queries a second by the share of rows that a filter removes.

    python -m benchmarks.index_data pocket
    python -m benchmarks.index_filters

A collection of three segments is built and tuned as `chiasm index build` does it, its text queries
learned from other captions than are asked, and asked by `OpenIndex.search_vectors(where=...)`.
The queries are put into CLUSTERS groups by k-means; a row's json has a random number and its ranks
by the inner product with the mean query of each of the largest groups. A filter compares one:

    random     rows at random
    with       the rows nearest to the mean query of the group that is asked
    against    the rows farthest from it
    own        groups of one query, which is asked alone: the rows farthest from that very query

A hit counts if its exact score is at least the k-th exact one - 1e-6. Queries a second: a CPU
second, one thread. Warm: the filtered and the unfiltered search of the same queries take turns;
given are the median of the rounds' ratios, the least and the greatest. Cold: the first batch with a
clause, which DuckDB evaluates and whose codes are copied: its queries a second over those of an
unfiltered batch, the milliseconds that it took longer than a warm one, and how many queries with
one clause make up for these, so that all are half as fast as without. Prints a table, writes
benchmarks/results/index_filters.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.index_data import CACHE
from benchmarks.machine import machine, table, tell_and_keep
from benchmarks.vector_collection import write_collection
from chiasm.index import IndexSettings, build_index, open_collection
from chiasm.index.query.filtered import explain

RESULT = Path(__file__).parent / "results" / "index_filters.json"
REMOVED = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9999)
KINDS = ("random", "with", "against", "own")
CLUSTERS, GROUPS, BATCH, K, SHARDS = 20, 8, 64, 10, 3
RECALL, EXACT = 0.95, (0.999, 0.9999)  # what is to be reached, and where all are to be found
SLOWEST = 0.5  # of the queries a second without a filter


class Bench:
    """The collection, and groups of queries: the `fields` of their ranks, `groups` (q, D), and the
    exact scores (q, N) of `scores`."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.xb = np.load(given.data / "xb.npy", mmap_mode="r")[: given.rows].astype(np.float16)
        self.rows = len(self.xb)
        queries = np.load(given.data / "tq_report.npy")
        several, centers = groups_of(queries, given.clusters, given.groups)
        self.groups = [*several, *queries[-given.groups :, None]]
        self.own = given.groups
        centers = np.concatenate([centers, queries[-given.groups :]])
        self.fields = [f"g{number}" for number in range(len(centers))]
        path = given.work / f"filters-{given.data.name}-{self.rows}-{given.groups}"
        if not (path / "index" / "CURRENT").exists():
            self._build(path, np.load(given.data / "tq_learn.npy"), centers)
        self.opened = open_collection(str(path), allow_stale=True)

    def _build(self, path: Path, texts: np.ndarray, centers: np.ndarray) -> None:
        xb = self.xb.astype(np.float32)
        orders = [np.argsort(-(xb @ center), kind="stable") for center in centers]
        orders.append(np.random.default_rng(0).permutation(self.rows))
        ranks = np.empty((self.rows, len(orders)), np.int64)
        for number, order in enumerate(orders):
            ranks[order, number] = np.arange(self.rows)
        names = [*self.fields, "random"]

        def json_of(row: int) -> str:
            pairs = zip(names, ranks[row].tolist(), strict=True)
            return "{" + ", ".join(f'"{name}": {rank}' for name, rank in pairs) + "}"

        write_collection(path, xb, texts[: self.rows], SHARDS, json_of=json_of, copies=False)
        settings = IndexSettings(segment_rows=-(-self.rows // SHARDS))
        build_index(str(path), columns=["image"], settings=settings)

    def scores(self, group: int) -> np.ndarray:
        return self.groups[group] @ self.xb.astype(np.float32).T

    def clause(self, kind: str, group: int, removed: float) -> tuple[str, int]:
        """The filter, and how many rows it lets pass."""
        count = max(K, round((1 - removed) * self.rows))
        if kind in ("random", "with"):
            field = "random" if kind == "random" else self.fields[group]
            return f"meta.{field} < {count}", count
        return f"meta.{self.fields[group]} >= {self.rows - count}", count


def groups_of(xq: np.ndarray, clusters: int, groups: int) -> tuple[list[np.ndarray], np.ndarray]:
    """The first BATCH queries of the largest clusters by spherical k-means, and their centers."""
    rng = np.random.default_rng(0)
    centers = xq[rng.choice(len(xq), clusters, replace=False)]
    for _ in range(10):
        members = (xq @ centers.T).argmax(axis=1)
        sums = np.stack([xq[members == number].sum(axis=0) for number in range(clusters)])
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        centers = np.where(norms > 0, sums / np.maximum(norms, 1e-12), centers)
    members = (xq @ centers.T).argmax(axis=1)
    largest = np.argsort(-np.bincount(members, minlength=clusters), kind="stable")[:groups]
    return [xq[members == number][:BATCH] for number in largest], centers[largest]


def seconds(function: Callable[[], Any]) -> float:
    started = time.process_time()
    function()
    return time.process_time() - started


def measure(bench: Bench, kind: str, removed: float, exact: list[np.ndarray], rounds: int) -> dict:
    """One row of the table."""
    numbers = range(bench.own, len(bench.groups)) if kind == "own" else range(bench.own)
    opened, recalls, warm, plain = bench.opened, [], [], []
    way, cold = "", {}
    for group in numbers:
        xq = bench.groups[group]
        where, count = bench.clause(kind, group, removed)
        spent = seconds(lambda xq=xq, where=where: opened.search_vectors(xq, K, where))
        cold.setdefault(where, (spent, len(xq)))
        turns = [
            (
                seconds(lambda xq=xq, where=where: opened.search_vectors(xq, K, where)),
                seconds(lambda xq=xq: opened.search_vectors(xq, K)),
            )
            for _ in range(rounds)
        ]
        warm.append([turn[0] for turn in turns])
        plain.append([turn[1] for turn in turns])
        allowed = opened.allowed(where)
        assert allowed is not None
        passes = np.concatenate([mask for mask in allowed if mask is not None])
        scores = exact[group][:, passes]
        assert scores.shape[1] == count
        kth = np.partition(scores, count - K, axis=1)[:, count - K]
        found = opened.search_vectors(xq, K, where)[0]
        recalls.append((found >= kth[:, None] - 1e-6).mean(axis=1))
        way = explain(opened.column("image"), K, opened.lists_to_scan("image"), allowed).way
    queries = sum(len(bench.groups[group]) for group in numbers)
    filtered, unfiltered = np.sum(warm, axis=0), np.sum(plain, axis=0)
    ratios = unfiltered / filtered
    one, plain_one = float(np.median(filtered)) / queries, float(np.median(unfiltered)) / queries
    cold_time, cold_queries = (sum(values) for values in zip(*cold.values(), strict=True))
    extra = (cold_time - cold_queries * one) / len(cold)  # of a clause
    spare = 2 * plain_one - one  # of a query, at half the speed
    recall = np.concatenate(recalls)
    return {
        "kind": kind,
        "removed": removed,
        "way": way,
        "recall": round(float(recall.mean()), 4),
        "least": round(float(recall.min()), 2),
        "qps": round(queries / float(np.median(filtered))),
        "ratio": round(float(np.median(ratios)), 3),
        "spread": [round(float(ratios.min()), 3), round(float(ratios.max()), 3)],
        "cold": round(cold_queries * plain_one / cold_time, 3),
        "cold_ms": round(1000 * extra, 1),
        "queries_to_half": round(extra / spare) if spare > 0 else None,
    }


def missed_bars(points: list[dict]) -> list[str]:
    """What of the bars is not reached, `own` left out."""
    found = []
    for point in points:
        name = f"{point['kind']} {100 * point['removed']:g} %"
        wanted = 1.0 if point["removed"] in EXACT else RECALL
        ratio = 1.0 if point["removed"] == EXACT[0] else SLOWEST
        if point["kind"] == "own":
            continue
        if point["recall"] < wanted:
            found.append(f"{name}: recall {point['recall']}, {wanted} is wanted")
        if point["ratio"] < ratio:
            found.append(f"{name}: {point['ratio']} x unfiltered, {ratio} is wanted")
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=CACHE / "index" / "pocket")
    parser.add_argument("--work", type=Path, default=CACHE / "index-work")
    parser.add_argument("--rows", type=int, help="of the set, for a trial")
    parser.add_argument("--clusters", type=int, default=CLUSTERS)
    parser.add_argument("--groups", type=int, default=GROUPS, help="that are asked, of each sort")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--to", type=Path, default=RESULT)
    given = parser.parse_args()
    bench = Bench(given)
    with threadpool_limits(1):
        exact = [bench.scores(group) for group in range(len(bench.groups))]
        points = [
            measure(bench, kind, removed, exact, given.rounds)
            for kind in given.kinds
            for removed in REMOVED
        ]
    plan = bench.opened.column("image").plan
    record: dict[str, Any] = {"machine": machine(), "set": given.data.name, "rows": bench.rows}
    record |= {"plan": str(plan), "nprobe": plan.nprobe, "missed": plan.missed}
    record |= {"oversample": plan.oversample, "points": points, "bars missed": missed_bars(points)}
    tell_and_keep(record, given.to)
    titles = ["filter", "removed %", "way", "recall", "least", "q/s", "x unfiltered", "spread"]
    titles += ["cold", "cold ms", "queries to half"]
    rows = [
        [
            *(one["kind"], f"{100 * one['removed']:g}", one["way"], one["recall"], one["least"]),
            *(one["qps"], one["ratio"], "{} to {}".format(*one["spread"]), one["cold"]),
            *(one["cold_ms"], one["queries_to_half"]),
        ]
        for one in points
    ]
    print(table(titles, rows))
    print("\n".join(record["bars missed"]) or "every bar is reached")


if __name__ == "__main__":
    main()

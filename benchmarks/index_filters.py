"""Filters from nothing to nearly everything removed: what is found, and how fast.

    python -m benchmarks.index_filters pocket

A collection of the set's rows whose json has a random rank and, for each of TOPICS directions, the
rank of the row's score with it, all between 0 and 1. Three kinds of filter at each share removed:
random    `meta.random >= share`.
with      what is left are the rows nearest to the query's own direction.
against   what is left are the rows farthest from it.
A query's direction is the one of TOPICS, queries themselves, that it is nearest to; queries of one
direction share a clause, in batches of 64 at most. Recall@10 is against exact search over the rows
that are left, a row counting as a hit if its score is at least that of the tenth less 1e-6; where
fewer than ten are left, all of those are wanted. Cold: milliseconds that the first query takes with
a clause that was never seen, more than the second takes. Warm: queries a CPU second in batches, one
thread. Prints JSON and writes benchmarks/results/index_filters.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.index_data import CACHE
from benchmarks.machine import ROOT, machine, tell_and_keep
from benchmarks.vector_collection import row_of_position, write_collection
from chiasm.index import IndexSettings, build_index, open_collection

RESULT = ROOT / "benchmarks" / "results" / "index_filters.json"
REMOVED = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9999)
KINDS = ("random", "with", "against")
TOPICS, SHARDS, BATCH, K, TIE = 8, 3, 64, 10, 1e-6


@dataclass(frozen=True)
class World:
    """Rows, queries, and what filters are made of. ranks: name of a field -> (N,) in [0, 1);
    topic (Q,): the direction of each query."""

    xb: np.ndarray
    xq: np.ndarray
    ranks: dict[str, np.ndarray]
    topic: np.ndarray

    @classmethod
    def of(cls, data: Path, queries: int) -> World:
        """The world over a set of benchmarks/index_data.py."""
        xb, xq = np.load(data / "xb.npy"), np.load(data / "tq_report.npy")[:queries]
        directions = np.load(data / "tq_learn.npy")[:TOPICS]
        # In a text-image gap all texts are near each other: what they share is left out.
        centred = directions - xq.mean(axis=0)
        ranks = {"random": np.random.default_rng(0).permutation(len(xb)) / len(xb)}
        for number, direction in enumerate(directions):
            ranks[f"near{number}"] = (xb @ direction).argsort().argsort() / len(xb)
        return cls(xb, xq, ranks, (xq @ centred.T).argmax(axis=1))

    def json_of(self, row: int) -> str:
        """The json of a row."""
        return json.dumps({name: round(float(rank[row]), 9) for name, rank in self.ranks.items()})

    def left(self, kind: str, topic: int, removed: float, nudge: float = 0.0) -> tuple[str, Any]:
        """A clause, and which rows it leaves: (N,) bool. nudge: less than half a rank, for another
        clause that leaves the same rows."""
        name = "random" if kind == "random" else f"near{topic}"
        half = 0.5 / len(self.xb)
        if kind == "against":
            most = 1 - removed - half + nudge
            return f"meta.{name} <= {most:.10f}", self.ranks[name] <= most
        least = removed - half + nudge
        return f"meta.{name} >= {least:.10f}", self.ranks[name] >= least


def main() -> None:
    """Build, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("set", help="of benchmarks/index_data.py")
    parser.add_argument("--data", type=Path, default=CACHE / "index")
    parser.add_argument("--work", type=Path, default=CACHE / "work" / "filters")
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--to", type=Path, default=RESULT)
    given = parser.parse_args()
    world = World.of(given.data / given.set, given.queries)
    shutil.rmtree(given.work, ignore_errors=True)
    collection = given.work / "collection"
    learn = np.load(given.data / given.set / "tq_learn.npy")
    write_collection(collection, world.xb, learn, SHARDS, json_of=world.json_of, copies=False)
    settings = IndexSettings(segment_rows=-(-len(world.xb) // SHARDS))
    build_index(collection, columns=["image"], settings=settings)
    index = open_collection(collection)
    rows = row_of_position(len(world.xb), SHARDS, copies=False)
    unfiltered = point(index, world, rows, None, 0.0)
    points = [
        {"kind": kind, "removed": removed, **point(index, world, rows, kind, removed)}
        for kind in KINDS
        for removed in REMOVED
    ]
    for each in points:
        each["speed"] = round(each["qps_cpu"] / unfiltered["qps_cpu"], 3)
    found = {
        "set": given.set, "rows": len(world.xb), "queries": len(world.xq), "unfiltered": unfiltered,
        "points": points, "least_recall": min(each["recall"] for each in points),
        "least_speed": min(each["speed"] for each in points), "machine": machine(),
    }  # fmt: skip
    tell_and_keep(found, given.to)


def point(
    index: Any, world: World, rows: np.ndarray, kind: str | None, removed: float
) -> dict[str, Any]:
    """Recall, speed warm and the cost of a clause cold, over all queries; kind None: no filter."""
    recalls, seconds, cold = [], 0.0, []
    for topic in range(TOPICS):
        xq = world.xq[world.topic == topic]
        if not len(xq):
            continue
        clause, left = (None, np.ones(len(world.xb), bool))
        if kind is not None:
            clause, left = world.left(kind, topic, removed)
            unseen, _ = world.left(kind, topic, removed, nudge=1e-9)
            cold.append(_seconds(index, xq[:1], unseen) - _seconds(index, xq[:1], unseen))
        batches = [xq[start : start + BATCH] for start in range(0, len(xq), BATCH)]
        ids = np.concatenate([index.search_vectors(b, K, where=clause)[1] for b in batches])
        recalls.append(_recalls(world, xq, rows[ids], left))
        started = time.process_time()
        for batch in batches:
            index.search_vectors(batch, K, where=clause)
        seconds += time.process_time() - started
    return {
        "recall": round(float(np.concatenate(recalls).mean()), 4),
        "qps_cpu": round(len(world.xq) / seconds, 1),
        "cold_ms": round(1e3 * float(np.median(cold)), 2) if cold else 0.0,
    }


def _seconds(index: Any, xq: np.ndarray, clause: str) -> float:
    started = time.perf_counter()
    index.search_vectors(xq, K, where=clause)
    return time.perf_counter() - started


def _recalls(world: World, xq: np.ndarray, ids: np.ndarray, left: np.ndarray) -> np.ndarray:
    """(Q,) share of hits among what could be found; a row that the filter removes is none."""
    kept = world.xb[left]
    wanted = min(K, len(kept))
    kth = -np.partition(-(xq @ kept.T), wanted - 1, axis=1)[:, wanted - 1]
    allowed = np.append(left, False)[ids] & (ids >= 0)
    scores = np.einsum("qd,qkd->qk", xq, world.xb[np.where(allowed, ids, 0)])
    return (allowed & (scores >= kth[:, None] - TIE)).sum(axis=1) / wanted


if __name__ == "__main__":
    main()

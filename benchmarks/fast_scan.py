"""Two scans of the same 8-bit codes: all of them by 8 bits, or by 4 bits first (index/query).

    python -m benchmarks.fast_scan --data FOLDER [--lists 2048] [--dims 48] [--rounds 5]

--data: a set of benchmarks.index_data, such as `pocket`. One projected index is made in memory and
searched by both scans in turn, in batches of 64 and one query at a time, on one thread, with more
and more lists and candidates. Prints queries a second of the processor's time at recall@10 of 0.95
and 0.99, medians of rounds with the lowest and the highest, and the ratio of the two, also for a
shortlist of 2 and of 8 rows for a candidate.

Writes benchmarks/results/fast_scan.json.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.index_curves import Point, spread
from benchmarks.index_curves import speed_at as qps_at
from benchmarks.machine import machine, table, tell_and_keep
from chiasm.index.build.train import encoded_index, train
from chiasm.index.build.trial_index import SAMPLE, SampleSegment
from chiasm.index.plan import TRAIN_PER_LIST, Plan
from chiasm.index.query import ColumnIndex, code_scan, exact_top, fast_scan, recall_of, search
from chiasm.index.segments import Float16Vectors

RESULT = Path(__file__).parent / "results" / "fast_scan.json"
K, BATCH, RECALLS = 10, 64, (0.95, 0.99)
PROBED = (0.01, 0.02, 0.03, 0.045, 0.07, 0.1, 0.15)  # of the lists
OVERSAMPLES = (1, 2, 3, 4, 6)


def make_index(xb: np.ndarray, learn: np.ndarray, plan: Plan, scan: Any) -> ColumnIndex:
    """The rows in memory, scanned by a class of index/query."""
    rng = np.random.default_rng(0)
    rows = xb.astype(np.float32)
    trained = train(plan, rows[rng.permutation(len(rows))[: TRAIN_PER_LIST * plan.lists]], learn)
    coded = np.ascontiguousarray(trained.rows(rows))
    encoded = encoded_index(trained, coded, trained.assign(rows, coded))
    segment: Any = SampleSegment(Float16Vectors(xb), encoded)
    index = ColumnIndex([segment], SAMPLE, plan, trained)
    residents = index.residents() or []
    index.merged = [replace(one, scan=scan(one.scan.codes, trained)) for one in residents]
    return index


def measure(index: ColumnIndex, xq: np.ndarray, best: np.ndarray, batch: int) -> list[Point]:
    """Recall and queries a second, by lists and candidates."""
    points: list[Point] = []
    for share in PROBED:
        nprobe = max(1, round(share * index.plan.lists))
        for oversample in OVERSAMPLES:
            tried = replace(index, plan=replace(index.plan, nprobe=nprobe, oversample=oversample))
            tried.merged = index.merged
            tried.open()
            began = time.thread_time()
            parts = [search(tried, xq[at : at + batch], K, nprobe)[0] for at in _starts(xq, batch)]
            spent = time.thread_time() - began
            recall = float(np.nanmean(recall_of(np.concatenate(parts), best, K)))
            points.append({"recall": recall, "qps_cpu": len(xq) / spent})
    return points


def _starts(xq: np.ndarray, batch: int) -> range:
    return range(0, len(xq), batch)


def main() -> None:
    """Make both, ask in turn, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--lists", type=int, default=2048)
    parser.add_argument("--dims", type=int, default=48)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--to", type=Path, default=RESULT)
    given = parser.parse_args()
    xb, learn, xq = (
        np.load(given.data / f"{name}.npy") for name in ("xb", "tq_learn", "tq_report")
    )
    xb, learn = xb.astype(np.float16), learn.astype(np.float32)
    xq = np.ascontiguousarray(xq[: given.queries], dtype=np.float32)
    plan = Plan("projected", given.lists, 1, "projected", given.dims, "SQ8", 1.5, 2)
    with threadpool_limits(1):
        best, _ = exact_top([(0, xb)], xq, K)
        scans = {
            "4 bits first": make_index(xb, learn, plan, fast_scan.FastScan),
            "8 bits": make_index(xb, learn, plan, code_scan.CodeScan),
        }
        shortlists = {"4 bits first": fast_scan.SHORTLIST, "shortlist 2": 2, "shortlist 8": 8}
        names = {name: name if name in scans else "4 bits first" for name in (*shortlists, *scans)}
        record: dict[str, Any] = {"machine": machine(), "rows": len(xb), "plan": str(plan)}
        for batch, count in ((BATCH, given.queries), (1, min(300, given.queries))):
            rounds: dict[str, list[list[Point]]] = {name: [] for name in names}
            for _ in range(given.rounds):
                for name, of in names.items():
                    fast_scan.SHORTLIST = shortlists.get(name, shortlists["4 bits first"])
                    rounds[name].append(measure(scans[of], xq[:count], best[:count], batch))
            record[f"batches of {batch}"] = summary(rounds)
    tell_and_keep(record, given.to)
    lines = [
        [batch, recall, name, *map(_cell, cells.values())]
        for batch in (BATCH, 1)
        for recall, by_name in record[f"batches of {batch}"].items()
        for name, cells in by_name.items()
    ]
    print(table(["batch", "recall", "scan", "q/s", "over 8 bits"], lines))


def _cell(values: dict[str, float] | None) -> str:
    return "" if values is None else "{median:,g} ({lowest:,g} to {highest:,g})".format(**values)


def summary(rounds: dict[str, list[list[Point]]]) -> dict[str, Any]:
    """Queries a second of each scan at each recall, and over those of the scan by 8 bits."""
    found: dict[str, Any] = {}
    for recall in RECALLS:
        speeds = {name: [qps_at(one, recall) for one in some] for name, some in rounds.items()}
        plain = speeds["8 bits"]
        found[str(recall)] = {
            name: {
                "qps_cpu": spread(some, 0),
                "over": spread(
                    [a / b if a and b else None for a, b in zip(some, plain, strict=True)], 2
                ),
            }
            for name, some in speeds.items()
        }
    return found


if __name__ == "__main__":
    main()

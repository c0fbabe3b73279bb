"""Filtered search: recall and queries a second, by the share of rows that a filter removes.

    python -m benchmarks.index_filters COLLECTION QUERIES.npy

QUERIES.npy: (Q, D) float32, unit rows. Filters keep rows at random, the rows nearest to the mean
query, or those farthest from it. The bitmaps are given: what DuckDB takes is not in it. `cold` is
the first batch with a bitmap, `warm` the median of the others. A hit counts if its exact score is
at least the k-th exact one - 1e-6. One thread. Searches with and without a filter take turns.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
from threadpoolctl import threadpool_limits

from chiasm.index import open_collection
from chiasm.index.query import search_filtered
from chiasm.index.query.filtered import explain

REMOVED = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9999)
BATCH, K = 64, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("collection")
    parser.add_argument("queries")
    parser.add_argument("--count", type=int, default=320)
    options = parser.parse_args()
    with threadpool_limits(1):
        measure(options.collection, np.load(options.queries)[: options.count])


def measure(path: str, xq: np.ndarray) -> None:
    opened = open_collection(path, allow_stale=True)
    index, nprobe = opened.column("image"), opened.lists_to_scan("image")
    raw = np.concatenate([segment.raw("image").take(slice(None)) for segment in opened.segments])
    exact = xq @ raw.T  # (Q, rows)
    nearness = raw @ xq.mean(axis=0)
    orders = {
        "random": np.random.default_rng(0).permutation(len(raw)),
        "with": np.argsort(-nearness),
        "against": np.argsort(nearness),
    }
    print(f"{len(raw):,} rows, {index.plan}, nprobe {nprobe}, {len(xq)} queries")
    for kind, order in orders.items():
        for removed in REMOVED:
            kept = order[: max(K, round((1 - removed) * len(raw)))]
            mask = np.zeros(len(raw), bool)
            mask[kept] = True
            parts = np.split(mask, index.starts[1:-1])
            for part in parts:
                part.flags.writeable = False
            found, cold, warm, plain = [], 0.0, [], []
            for start in range(0, len(xq), BATCH):
                block = xq[start : start + BATCH]
                begun = time.perf_counter()
                found.append(search_filtered(index, block, K, nprobe, parts)[0])
                between = time.perf_counter()
                search_filtered(index, block, K, nprobe, None)
                plain.append((time.perf_counter() - between) / len(block))
                if start:
                    warm.append((between - begun) / len(block))
                else:
                    cold = (between - begun) / len(block)
            kth = np.partition(exact[:, kept], -K, axis=1)[:, -K]
            recall = float((np.concatenate(found) >= kth[:, None] - 1e-6).mean())
            ratio = statistics.median(plain) / statistics.median(warm)
            way = explain(index, K, nprobe, parts, BATCH)
            print(
                f"{kind:8} {100 * removed:6.2f} % recall {recall:.3f} warm "
                f"{1 / statistics.median(warm):8,.0f} q/s = {ratio:5.2f} x unfiltered, cold "
                f"{1 / cold:7,.0f} q/s; {way.reason}",
                flush=True,
            )


if __name__ == "__main__":
    main()

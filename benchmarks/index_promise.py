"""Is the recall that a build promises kept by queries that it never saw?

    python -m benchmarks.index_promise pocket --rows 60000

SETS sets of SIZE queries each, made by the generator of the set; nothing learned from them: text
queries, pictures, and texts with a filter that leaves a tenth of the rows. A set keeps a promise if
its mean recall@10 is no lower. Two shares are given for each kind: of the sets that keep what the
build promised, and of trials in which a set kept `promised_recall` of SAMPLE other queries, another
sample in each trial: one build is one draw of its sample. The queries are made once, and kept
beside the set. Sets are drawn from them without replacement; all queries are used up before they
are shuffled anew, so that every query is in as many sets. Prints JSON and writes
benchmarks/results/index_promise.json.
"""

from __future__ import annotations

import argparse
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.index_data import CACHE, MadeWorld, fresh_pictures, fresh_texts, save
from benchmarks.machine import ROOT, machine, tell_and_keep
from benchmarks.vector_collection import row_of_position, write_collection
from chiasm.index import IndexSettings, build_index, open_collection
from chiasm.index.build.promise import promised_recall

RESULT = ROOT / "benchmarks" / "results" / "index_promise.json"
KINDS = ("text", "picture", "filtered")
SETS, SIZE, SAMPLE = 1000, 500, 1000
SHARDS, K, TIE, BATCH, BLOCK = 3, 10, 1e-6, 64, 50_000
LEFT = 10  # a filter leaves one row in so many


def main() -> None:
    """Build, ask, print, write."""
    given = _arguments()
    data = given.data / given.set
    xb = np.load(data / "xb.npy", mmap_mode="r")[: given.rows]
    learn = np.load(data / "tq_learn.npy")[: len(xb)]
    shutil.rmtree(given.work, ignore_errors=True)
    collection = given.work / "collection"
    write_collection(collection, xb, learn, SHARDS, json_of=_json, copies=False)
    settings = IndexSettings(recall=given.recall, segment_rows=-(-len(xb) // SHARDS))
    summary = build_index(collection, columns=["image"], settings=settings)
    index = open_collection(collection)
    rows = row_of_position(len(xb), SHARDS, copies=False)
    promised = summary.reports["image"].promise
    texts, pictures = pool(data, given.texts, given.pictures)
    kinds: dict[str, Any] = {}
    for kind, xq in zip(KINDS, (texts, pictures, texts[: given.pictures]), strict=True):
        recalls = recalls_of(index, rows, xb, xq, kind == "filtered")
        kinds[kind] = kept_share(recalls, promised[kind])
    found = {
        "set": given.set, "rows": len(xb), "recall": given.recall, "sets": SETS, "size": SIZE,
        "plan": summary.columns, "kinds": kinds, "machine": machine(),
    }  # fmt: skip
    tell_and_keep(found, given.to)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("set", help="of benchmarks/index_data.py")
    parser.add_argument("--data", type=Path, default=CACHE / "index")
    parser.add_argument("--work", type=Path, default=CACHE / "work" / "promise")
    parser.add_argument("--recall", type=float, default=0.95)
    parser.add_argument("--rows", type=int, help="of the set, the first; all")
    parser.add_argument("--texts", type=int, default=20_000, help="text queries that are made")
    parser.add_argument("--pictures", type=int, default=20_000, help="pictures, filtered queries")
    parser.add_argument("--to", type=Path, default=RESULT)
    return parser.parse_args()


def _json(row: int) -> str:
    return f'{{"tenth": {row % LEFT}}}'


def pool(data: Path, texts: int, pictures: int) -> tuple[np.ndarray, np.ndarray]:
    """Queries that no set has: (texts, D) and (pictures, D) float32, kept in the set's folder."""
    if data.name == "pocket":
        makers = fresh_texts, fresh_pictures
    else:
        made = {"made300k": MadeWorld(512, 1), "made1m": MadeWorld(256, 2)}[data.name]
        # Streams of rows are below this.
        makers = (
            lambda count: made.rows("text", count, 10**8),
            lambda count: made.rows("picture", count, 10**8 + 1),
        )
    counts = {"fresh_texts": texts, "fresh_pictures": pictures}
    paths = [data / f"{name}_{count}.npy" for name, count in counts.items()]
    for path, count, make in zip(paths, counts.values(), makers, strict=True):
        if not path.exists():
            save(path, make(count))
    return np.load(paths[0]), np.load(paths[1])


def recalls_of(
    index: Any, rows: np.ndarray, xb: np.ndarray, xq: np.ndarray, filtered: bool
) -> np.ndarray:
    """(Q,) recall@10 of each query, against exact search."""
    found = []
    for start in range(0, len(xq), BATCH):
        batch, tenth = xq[start : start + BATCH], (start // BATCH) % LEFT
        where = f"meta.tenth = {tenth}" if filtered else None
        ids = rows[index.search_vectors(batch, K, where=where)[1]]
        left = np.arange(tenth, len(xb), LEFT) if filtered else None
        kth = _tenth_best(xb if left is None else xb[left], batch)
        allowed = (ids >= 0) & ((ids % LEFT == tenth) if filtered else True)
        scores = np.einsum("qd,qkd->qk", batch, xb[np.where(allowed, ids, 0)])
        found.append((allowed & (scores >= kth[:, None] - TIE)).mean(axis=1))
    return np.concatenate(found)


def _tenth_best(xb: np.ndarray, xq: np.ndarray) -> np.ndarray:
    best = np.empty((len(xq), 0), np.float32)
    for first in range(0, len(xb), BLOCK):
        scores = np.concatenate([best, xq @ xb[first : first + BLOCK].T], axis=1)
        best = -np.partition(-scores, K - 1, axis=1)[:, :K]
    return best.min(axis=1)


def kept_share(recalls: np.ndarray, promised: float) -> dict[str, Any]:
    """The figures of one kind of query."""
    means = np.array([recalls[some].mean() for some in drawn(len(recalls), SIZE, SETS, 0)])
    promises, kept = [], 0
    # A trial's set and its sample have no query in common.
    for some in drawn(len(recalls), SIZE + SAMPLE, SETS, 1):
        promises.append(promised_recall(recalls[some[SIZE:]]))
        kept += bool(recalls[some[:SIZE]].mean() >= promises[-1])
    return {
        "queries": len(recalls),
        "mean_recall": round(float(recalls.mean()), 4),
        "lowest_set": round(float(means.min()), 4),
        "repeated": {
            "kept": round(kept / SETS, 4),
            "mean_promise": round(float(np.mean(promises)), 4),
            "below_mean_recall": round(float(recalls.mean() - np.mean(promises)), 4),
        },
        "promised": promised,
        "kept": round(float((means >= promised).mean()), 4),
        "below_mean_recall": round(float(recalls.mean()) - promised, 4),
    }


def drawn(count: int, size: int, sets: int, seed: int) -> Iterator[np.ndarray]:
    """`sets` times `size` of `count` numbers; a shuffled order is used up before the next one."""
    rng, order = random.Random(f"sets {seed}"), []
    for _ in range(sets):
        if len(order) < size:
            order = rng.sample(range(count), count)
        some, order = order[:size], order[size:]
        yield np.array(some)


if __name__ == "__main__":
    main()

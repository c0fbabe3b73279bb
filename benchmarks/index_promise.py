"""Is the recall that a build promises kept by queries that it never saw?

    python -m benchmarks.index_promise pocket --promised text=0.953 picture=0.971 filtered=0.949

SETS sets of SIZE queries each, made anew by the generator of the set; nothing learned from them:
text queries, pictures, and texts with a filter that leaves a tenth of the rows. A set keeps a
promise if its mean recall@10 is no lower. Two shares are given for each kind: of the sets that keep
what the build promised (--promised), and of trials in which a set kept `promised_recall` of SAMPLE
other queries, another sample in each trial: one build is one draw of its sample. Sets are drawn
without replacement from a pool, which is shuffled when it is used up, so that every query is in as
many sets. Prints JSON and writes benchmarks/results/index_promise.json.
"""

from __future__ import annotations

import argparse
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.index_data import CACHE, MadeWorld, fresh_pictures, fresh_texts
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
    xb, learn = np.load(data / "xb.npy"), np.load(data / "tq_learn.npy")
    shutil.rmtree(given.work, ignore_errors=True)
    collection = given.work / "collection"
    write_collection(collection, xb, learn, SHARDS, json_of=_json, copies=False)
    settings = IndexSettings(recall=given.recall, segment_rows=-(-len(xb) // SHARDS))
    summary = build_index(collection, columns=["image"], settings=settings)
    index = open_collection(collection)
    rows = row_of_position(len(xb), SHARDS, copies=False)
    texts, pictures = pool(given.set, given.pool, given.pictures)
    kinds: dict[str, Any] = {}
    for kind, xq in zip(KINDS, (texts, pictures, texts[: given.pictures]), strict=True):
        recalls = recalls_of(index, rows, xb, xq, kind == "filtered")
        kinds[kind] = kept_share(recalls, given.promised.get(kind))
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
    parser.add_argument("--pool", type=int, default=50_000, help="text queries that are made")
    parser.add_argument("--pictures", type=int, default=20_000, help="pictures, filtered queries")
    parser.add_argument("--promised", nargs="*", default=[], metavar="KIND=RECALL")
    parser.add_argument("--to", type=Path, default=RESULT)
    given = parser.parse_args()
    pairs = (pair.partition("=") for pair in given.promised)
    given.promised = {kind: float(recall) for kind, _, recall in pairs}
    return given


def _json(row: int) -> str:
    return f'{{"tenth": {row % LEFT}}}'


def pool(name: str, texts: int, pictures: int) -> tuple[np.ndarray, np.ndarray]:
    """Queries that no set has: (texts, D) and (pictures, D) float32."""
    if name == "pocket":
        return fresh_texts(texts), fresh_pictures(pictures)
    made = {"made300k": MadeWorld(512, 1), "made1m": MadeWorld(256, 2)}[name]
    # Streams of rows are below this.
    return made.rows("text", texts, 10**8), made.rows("picture", pictures, 10**8 + 1)


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


def kept_share(recalls: np.ndarray, promised: float | None) -> dict[str, Any]:
    """The figures of one kind of query."""
    means = np.array([recalls[some].mean() for some in drawn(len(recalls), SIZE, SETS, 0)])
    promises, kept = [], 0
    # A trial's set and its sample have no query in common.
    for some in drawn(len(recalls), SIZE + SAMPLE, SETS, 1):
        promises.append(promised_recall(recalls[some[SIZE:]]))
        kept += bool(recalls[some[:SIZE]].mean() >= promises[-1])
    figures: dict[str, Any] = {
        "queries": len(recalls),
        "mean_recall": round(float(recalls.mean()), 4),
        "lowest_set": round(float(means.min()), 4),
        "repeated": {
            "kept": round(kept / SETS, 4),
            "mean_promise": round(float(np.mean(promises)), 4),
            "below_mean_recall": round(float(recalls.mean() - np.mean(promises)), 4),
        },
    }
    if promised is not None:
        figures["promised"] = promised
        figures["kept"] = round(float((means >= promised).mean()), 4)
        figures["below_mean_recall"] = round(float(recalls.mean()) - promised, 4)
    return figures


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

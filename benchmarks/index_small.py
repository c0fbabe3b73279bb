"""Small vectors: what an index of 8 bits, of none, or of fewer numbers takes, finds and costs.

    python -m benchmarks.index_small [--rows 300000] [--dim 256] [--data FOLDER] [--dims 48 64 128]

One collection is indexed once in each way, by the default plan (nothing is tuned): projected, with
copies of float16, of 8 bits, and without; and by the first numbers of the vectors, as for a
Matryoshka model, and the whole of them. --data: a set of benchmarks.index_data; without it one is
made (`MadeWorld`, whose first numbers mean no more than others).

bytes       of a row in the files of the column; `lists` are in memory, `vectors` are mapped
of HNSW32   lists and vectors, over what FAISS's HNSW32 keeps: float32 and 256 bytes of links
scored      recall@10, were every row a candidate: what scoring by these vectors loses
recall@10   of the index, by exact scores of what it finds, with the lists that its plan scans
q/s         in batches of 64, by the processor's time of one thread; medians of rounds, the ways in
            turn. `first`: of the first round of all, when nothing of Parquet files is in memory

Prints a table, and writes benchmarks/results/index_small.json.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.index_data import MadeWorld, as_stored
from benchmarks.machine import machine, table, tell_and_keep
from benchmarks.vector_collection import write_collection
from chiasm.index import IndexSettings, Searcher, build_index, open_collection
from chiasm.index.query import ColumnIndex
from chiasm.index.query.truth import Ranked, exact_top, recall_of

RESULT = Path(__file__).parent / "results" / "index_small.json"
K, DEEPEST, BATCH, LEARN, SHARDS = 10, 100, 64, 5_000, 3
LINKS = 256  # bytes a row: 2 x 32 neighbours of the lowest layer, int32
BLOCK = 16_384


def main() -> None:
    """Build, ask, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--dim", type=int, default=256, help="of vectors that are made")
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dims", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--projected", type=int, default=48, help="dimensions of the projection")
    parser.add_argument("--data", type=Path, help="folder of a set of benchmarks.index_data")
    given = parser.parse_args()
    xb, learn, xq = vectors_of(given)
    with tempfile.TemporaryDirectory(prefix="chiasm-small-") as folder, threadpool_limits(1):
        path = Path(folder) / "c"
        write_collection(path, xb, learn, SHARDS, copies=False)
        ways = [Way(name, settings) for name, settings in plans(given, xb.shape[1])]
        for way in ways:
            way.build(str(path))
        ranked = Ranked(*exact_top([(0, xb)], xq, DEEPEST))
        for _ in range(given.rounds):
            for way in ways:
                way.ask(xq)
        scored = {way.settings.vectors: way.scored(xq, ranked) for way in ways[:3]}  # each form
        found = [way.figures(xq, ranked, xb.shape[1], scored) for way in ways]
    print(table(list(found[0]), [list(one.values()) for one in found]))
    about = {"rows": len(xb), "dim": xb.shape[1], "queries": len(xq), "rounds": given.rounds}
    about["data"] = given.data.name if given.data else "made"
    tell_and_keep({"machine": machine(), **about, "ways": found}, RESULT)


def vectors_of(given: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, text queries to learn from and others to ask: float32."""
    if given.data is not None:
        names = ("xb", "tq_learn", "tq_report")
        xb, learn, xq = (np.load(given.data / f"{name}.npy", mmap_mode="r") for name in names)
        return xb[: given.rows], learn[:LEARN], np.array(xq[: given.queries])
    world = MadeWorld(given.dim, 5)
    texts = world.rows("text", min(LEARN, given.rows // 2) + given.queries, 1)
    rows = as_stored(world.rows("picture", given.rows, 2))
    return rows, texts[given.queries :], texts[: given.queries]


def plans(given: argparse.Namespace, dim: int) -> Iterator[tuple[str, IndexSettings]]:
    common: dict[str, Any] = {"tune": False, "exact_below": 1, "keep_generations": 100}
    for form in ("float16", "int8", "none"):
        settings = IndexSettings(kind="projected", dims=given.projected, vectors=form, **common)
        yield f"projected to {given.projected}, {form}", settings
    for dims in (*given.dims, dim):
        for form in ("float16", "int8"):
            settings = IndexSettings(kind="ivf", dims=dims, vectors=form, **common)
            yield f"first {dims}, {form}", settings


@dataclass
class Way:
    """One index, and the processor's seconds of each round."""

    name: str
    settings: IndexSettings
    seconds: list[float] = field(default_factory=list)
    _index: Searcher | None = None

    def build(self, path: str) -> None:
        build_index(path, columns=["image"], settings=self.settings)
        self._index = open_collection(path)
        self._index.column("image").open()

    def ask(self, xq: np.ndarray) -> np.ndarray:
        assert self._index is not None
        began = time.process_time()
        positions = [
            self._index.search_vectors(xq[start : start + BATCH], K)[1]
            for start in range(0, len(xq), BATCH)
        ]
        self.seconds.append(time.process_time() - began)
        return np.concatenate(positions)

    def scored(self, xq: np.ndarray, ranked: Ranked) -> float:
        """The recall of a scan of all vectors as this way has them."""
        assert self._index is not None
        found = exact_top(_blocks(self._index.column("image")), xq, K)[1]
        return float(recall_of(ranked.scores_of(found), ranked.scores, K).mean())

    def figures(
        self, xq: np.ndarray, ranked: Ranked, dim: int, scored: dict[str, float]
    ) -> dict[str, Any]:
        """What is printed. scored: by form, as by `scored`."""
        assert self._index is not None
        column = self._index.column("image")
        seconds = list(self.seconds)
        found = recall_of(ranked.scores_of(self.ask(xq)), ranked.scores, K).mean()
        lists, vectors = (_bytes(column, kinds) for kinds in (("lists",), ("f16", "i8", "source")))
        return {
            "way": self.name,
            "lists": lists,
            "vectors": vectors,
            "of HNSW32": round((lists + vectors) / (4 * dim + LINKS), 3),
            "scored": round(scored[self.settings.vectors], 4),
            "recall@10": round(float(found), 4),
            "q/s": round(len(xq) / median(seconds)),
            "first": round(len(xq) / seconds[0]),
        }


def _blocks(column: ColumnIndex) -> Iterator[tuple[int, np.ndarray]]:
    """All rows by the vectors that candidates are scored by."""
    for first, segment in zip(column.starts.tolist(), column.segments, strict=False):
        vectors = segment.raw("image")
        for start in range(0, len(segment), BLOCK):
            rows = np.arange(start, min(start + BLOCK, len(segment)))
            yield first + start, vectors.take(rows)


def _bytes(column: ColumnIndex, kinds: tuple[str, ...]) -> float:
    """A row, in files of these kinds."""
    sizes = [
        checksum.size
        for segment in column.segments
        for name, checksum in segment.record.files.items()
        if name in {f"image.{kind}" for kind in kinds}
    ]
    return round(sum(sizes) / int(column.starts[-1]), 2)


if __name__ == "__main__":
    main()

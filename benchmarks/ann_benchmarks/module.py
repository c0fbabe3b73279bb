"""chiasm for ann-benchmarks and VIBE: copy this folder to `ann_benchmarks/algorithms/chiasm`, or to
`vibe/algorithms/chiasm` (config-vibe.yml as config.yml), with chiasm's checkout on PYTHONPATH.

VIBE hands the queries that may be learned from to `fit_ood`; ann-benchmarks has none, and the rows
stand for them. Distances are `angular` or `cosine`, `ip` and `normalized`: rows are made unit rows.
Where fewer than n rows are found, -1 follows them.

    python run.py --algorithm chiasm --dataset glove-100-angular --local     # of ann-benchmarks
"""

import tempfile
from pathlib import Path

import numpy as np

from benchmarks.vector_collection import row_of_position, write_collection
from chiasm.index import IndexSettings, build_index, open_collection

from ..base.module import BaseANN  # noqa: TID252  # pyrefly: ignore  # of the benchmark

SHARDS = 3


class Chiasm(BaseANN):
    """An index that chiasm tunes by itself to `recall`."""

    def __init__(self, metric, recall):
        self.metric, self.recall = metric, recall
        self._folder = tempfile.TemporaryDirectory()
        self.times, self.lists = 1.0, 0

    def fit(self, X):
        self.fit_ood(X, None, None)

    def fit_ood(self, X_train, X_learn, X_learn_neighbors):
        path = Path(self._folder.name) / "collection"
        learn = None if X_learn is None else _unit(X_learn)
        write_collection(path, _unit(X_train), learn, SHARDS, copies=False)
        build_index(path, columns=["image"], settings=IndexSettings(recall=self.recall))
        self.index = open_collection(path)
        self.rows = row_of_position(len(X_train), SHARDS, copies=False)
        self.plan = self.index.generation.manifest.columns["image"]

    def set_query_arguments(self, times):
        self.times = times
        self.lists = max(1, min(self.plan.lists, round(self.plan.nprobe * times)))

    def query(self, q, n):
        return self._search(q[None], n)[0]

    def batch_query(self, X, n):
        self.res = self._search(X, n)

    def get_batch_results(self):
        return self.res

    def done(self):
        self._folder.cleanup()

    def _search(self, xq, n):
        return self.rows[self.index.search_vectors(_unit(xq), n, nprobe=self.lists)[1]]

    def __str__(self):
        return f"Chiasm(recall={self.recall}, lists={self.times:g} x the plan's)"


def _unit(rows):
    """A row of zeros, which has no direction, becomes one of equal numbers."""
    rows = np.asarray(rows, np.float32)
    rows = np.where(rows.any(axis=1, keepdims=True), rows, np.float32(1))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)

"""ScaNN: a tree of about sqrt(n) leaves, 4-bit codes with anisotropic loss, float32 to reorder, as
its authors advise for some 10^5 to 10^6 rows."""

from __future__ import annotations

import math
from importlib.metadata import version

import numpy as np
import scann  # pyrefly: ignore  # in an environment of its own

from benchmarks.peers.worker import Peer, serve


class Scann(Peer):
    # Leaves to search, candidates to reorder.
    PARAMS = (
        (10, 60), (20, 60), (20, 100), (40, 100), (60, 100), (60, 200), (100, 200), (100, 400),
        (150, 400), (200, 400), (200, 800), (300, 800), (400, 1200),
    )  # fmt: skip

    def build(self, data, work, threads):
        xb = np.load(data / "xb.npy")
        leaves = 2 * round(math.sqrt(len(xb)))
        builder = scann.scann_ops_pybind.builder(xb, 10, "dot_product")
        builder.tree(leaves, 100, training_sample_size=min(len(xb), 250_000))
        builder.score_ah(2, anisotropic_quantization_threshold=0.2)
        builder.reorder(100)
        builder.set_n_training_threads(threads)
        self.searcher = builder.build()

    def prepare(self, param):
        self.leaves, self.reorder = param

    def search(self, xq, k):
        settings = {
            "final_num_neighbors": k,
            "leaves_to_search": self.leaves,
            "pre_reorder_num_neighbors": self.reorder,
        }
        if len(xq) == 1:
            return self.searcher.search(xq[0], **settings)[0].reshape(1, -1)
        return self.searcher.search_batched(xq, **settings)[0]

    def rows_of(self, ids):
        # uint32; what lies past the rows stands for "none".
        return np.asarray(ids).astype(np.int64)

    def about(self):
        return {"version": version("scann"), "kind": "tree of 2 sqrt(n), AH 2 x 0.2, reordered"}


if __name__ == "__main__":
    serve(Scann())

"""SymphonyQG of rabitqlib: a graph of 32 neighbours, walked by 1-bit codes, raw vectors beside."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
from rabitqlib import SymqgIndex  # pyrefly: ignore  # in an environment of its own

from benchmarks.peers.worker import Peer, serve


class Symqg(Peer):
    PARAMS = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768)

    def build(self, data, work, threads):
        xb = np.load(data / "xb.npy")
        self.index = SymqgIndex(xb.shape[1], 32, metric="ip")
        self.index.build(xb, 200, num_threads=threads)

    def prepare(self, param):
        self.ef = param

    def search(self, xq, k):
        return self.index.search_batch(xq, k, max(self.ef, k), 1)[0]

    def about(self):
        return {"version": version("rabitqlib"), "kind": "SymqgIndex, 32 neighbours, ef 200"}


if __name__ == "__main__":
    serve(Symqg())

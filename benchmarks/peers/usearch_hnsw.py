"""USearch: its HNSW with 32 neighbours over float16 vectors."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
from usearch.index import Index  # pyrefly: ignore  # in an environment of its own

from benchmarks.peers.worker import Peer, serve


class Usearch(Peer):
    PARAMS = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768)

    def build(self, data, work, threads):
        xb = np.load(data / "xb.npy")
        self.index = Index(
            ndim=xb.shape[1], metric="ip", dtype="f16", connectivity=32, expansion_add=100
        )
        self.index.add(np.arange(len(xb), dtype=np.uint64), xb, threads=threads)

    def prepare(self, param):
        self.index.expansion_search = param

    def search(self, xq, k):
        return self.index.search(xq, k, threads=1).keys.reshape(len(xq), -1)

    def about(self):
        return {"version": version("usearch"), "kind": "HNSW32, float16, expansion 100"}


if __name__ == "__main__":
    serve(Usearch())

"""FAISS HNSW with 32 neighbours over float32 vectors, efConstruction 100."""

from __future__ import annotations

import faiss
import numpy as np

from benchmarks.peers.worker import Peer, serve


class FaissHnsw(Peer):
    PARAMS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768)

    def build(self, data, work, threads):
        faiss.omp_set_num_threads(threads)
        xb = np.load(data / "xb.npy")
        self.index = faiss.IndexHNSWFlat(xb.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
        self.index.hnsw.efConstruction = 100
        self.index.add(xb)
        faiss.omp_set_num_threads(1)

    def prepare(self, param):
        self.ef = faiss.SearchParametersHNSW(efSearch=param)  # pyrefly: ignore

    def search(self, xq, k):
        return self.index.search(xq, k, params=self.ef)[1]

    def about(self):
        return {"version": faiss.__version__, "kind": "HNSW32, efConstruction 100"}


if __name__ == "__main__":
    serve(FaissHnsw())

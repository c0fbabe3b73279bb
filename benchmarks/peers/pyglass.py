"""Glass: HNSW with 32 neighbours, L 200, 8-bit codes to walk and float16 vectors to refine."""

from __future__ import annotations

from importlib.metadata import version

import glass  # pyrefly: ignore  # in an environment of its own
import numpy as np

from benchmarks.peers.worker import Peer, serve


class Glass(Peer):
    PARAMS = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768)

    def build(self, data, work, threads):
        glass.set_num_threads(threads)
        xb = np.load(data / "xb.npy")
        graph = glass.Index("HNSW", "IP", "SQ8U", 32, 200).build(xb)
        self.searcher = glass.Searcher(graph, xb, "IP", "SQ8U", "FP16")
        # It tries how far to fetch ahead, as its authors' benchmarks do.
        self.searcher.optimize(1)
        glass.set_num_threads(1)

    def prepare(self, param):
        self.searcher.set_ef(param)

    def search(self, xq, k):
        if len(xq) == 1:
            return np.asarray(self.searcher.search(xq[0], k)[0]).reshape(1, -1)
        return np.asarray(self.searcher.batch_search(xq, k, 1)[0]).reshape(len(xq), -1)

    def about(self):
        return {"version": version("pyglass-portable"), "kind": "HNSW32, L 200, SQ8U + FP16"}


if __name__ == "__main__":
    serve(Glass())

"""What autofaiss chooses as it ships: `build_index` with its defaults, 1 GB and 10 ms a query."""

from __future__ import annotations

import json
from importlib.metadata import version

import faiss
from autofaiss import build_index  # pyrefly: ignore  # in an environment of its own

from benchmarks.peers.worker import Peer, serve


class Autofaiss(Peer):
    PARAMS = ("as it ships",)

    def build(self, data, work, threads):
        faiss.omp_set_num_threads(threads)
        folder = work / "embeddings"
        folder.mkdir(exist_ok=True)
        link = folder / "xb.npy"
        if not link.exists():
            link.symlink_to((data / "xb.npy").resolve())
        self.index, self.infos = build_index(
            str(folder),
            save_on_disk=True,
            index_path=str(work / "knn.index"),
            index_infos_path=str(work / "infos.json"),
            max_index_query_time_ms=10,
            max_index_memory_usage="1GB",
            current_memory_available="8GB",
            nb_cores=threads,
        )
        faiss.omp_set_num_threads(1)

    def prepare(self, param):
        """The choice is asked as autofaiss has set it."""

    def search(self, xq, k):
        return self.index.search(xq, k)[1]

    def about(self):
        infos = json.loads(json.dumps(self.infos, default=str))
        return {
            "version": version("autofaiss"),
            "faiss": faiss.__version__,
            "kind": infos.get("index_key"),
            "param": infos.get("index_param"),
        }


if __name__ == "__main__":
    serve(Autofaiss())

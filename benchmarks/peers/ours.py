"""chiasm: a generation of three segments with a deletion bitmap, asked through `search_vectors`.

It is built as `chiasm index build` does it, in a process of its own, with the texts of tq_learn.npy
as the captions that the tuner learns from. Making the collection is no part of the build.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np

from benchmarks.peers.worker import Peer, serve
from benchmarks.vector_collection import copied_keys, row_of_position
from chiasm.index import IndexSettings, build_index, open_collection

SHARDS = 3
# Lists to scan, as multiples of what the plan says.
PROBES = (0.25, 0.35, 0.5, 0.7, 0.85, 1, 1.2, 1.4, 1.7, 2, 2.8, 4, 6, 8)


class Ours(Peer):
    def gather(self, data, work):
        self.rows = len(np.load(data / "xb.npy", mmap_mode="r"))
        shutil.rmtree(work, ignore_errors=True)
        program = "benchmarks.vector_collection"
        learn = ("--texts", data / "tq_learn.npy", "--shards", str(SHARDS))
        files = (data / "xb.npy", work / "collection")
        subprocess.run([sys.executable, "-m", program, *files, *learn], check=True)

    def build(self, data, work, threads):
        # What the build leaves in memory is no part of an open index.
        command = [sys.executable, __file__, "build", work / "collection", str(self.rows)]
        threaded = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        built = subprocess.run(command, env=threaded, check=True, stdout=subprocess.PIPE, text=True)
        self.summary = json.loads(built.stdout.splitlines()[-1])
        self.index = open_collection(work / "collection")
        self.row_of_position = row_of_position(self.rows, SHARDS)
        self.plan = self.index.generation.manifest.columns["image"]
        wanted = (max(1, round(self.plan.nprobe * times)) for times in PROBES)
        self.PARAMS = tuple(sorted({min(self.plan.lists, probes) for probes in wanted}))

    def prepare(self, param):
        self.nprobe = param or None

    def search(self, xq, k):
        return self.index.search_vectors(xq, k, nprobe=self.nprobe)[1]

    def rows_of(self, ids):
        return self.row_of_position[ids]

    def about(self):
        return {"kind": str(self.plan), "oversample": self.plan.oversample, **self.summary}


def build(collection: str, rows: int) -> None:
    """Build, delete the copies, and print the seconds of each stage."""
    from chiasm.index.build.edit import delete_from_index
    from chiasm.index.build.select_rows import ByKey

    settings = IndexSettings(segment_rows=-(-rows // SHARDS))
    summary = build_index(collection, columns=["image"], settings=settings)
    delete_from_index(collection, lambda _: ByKey(copied_keys(rows, SHARDS)))
    print(json.dumps({"segments": summary.segments, "seconds": summary.seconds}))


if __name__ == "__main__":
    if sys.argv[1] == "build":
        build(sys.argv[2], int(sys.argv[3]))
    else:
        serve(Ours())

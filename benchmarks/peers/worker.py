"""What every peer's process does: build an index of xb.npy, then answer requests, one JSON object a
line over stdin and stdout.

    python benchmarks/peers/NAME.py SET_FOLDER WORK_FOLDER

SET_FOLDER holds the files of benchmarks/index_data.py; WORK_FOLDER is the process's own. It runs in
an environment that has numpy and the peer's library alone: nothing of chiasm is imported here.

Requests:
{"do": "build", "threads": T}       -> {"wall", "cpu": seconds, "params": what `measure` takes}
{"do": "measure", "param", "batch": B, "k", "queries": file, "seconds", "ids": file}
    all queries in batches of B, again and again until so many CPU seconds have passed, in one
    thread; the row numbers (Q, k) go to the file `ids`, -1 where there are fewer.
                                    -> {"qps_cpu", "qps_wall": queries a CPU second, a second}
{"do": "memory"}                    -> {"index_mb"}: Pss now, less that before the data was read

Pss (/proc/self/smaps_rollup) counts resident and mapped pages alike. Each index must stand on its
own: the array that it was built from is freed, or was never in this process.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np


class Peer:
    """An index of a library. PARAMS: what `prepare` takes, cheap and inexact first."""

    PARAMS: tuple = ()

    def gather(self, data: Path, work: Path) -> None:
        """What comes before a build and is not timed."""

    def build(self, data: Path, work: Path, threads: int) -> None:
        """Build over data/xb.npy with so many threads. Nothing may refer to that array later."""
        raise NotImplementedError

    def prepare(self, param) -> None:
        """What later searches are made with; they run in one thread."""
        raise NotImplementedError

    def search(self, xq: np.ndarray, k: int) -> np.ndarray:
        """(B, D) float32 -> (B, k) row numbers, best first."""
        raise NotImplementedError

    def rows_of(self, ids: np.ndarray) -> np.ndarray:
        """What `search` returned -> row numbers of xb.npy; not timed."""
        return np.asarray(ids).astype(np.int64)

    def about(self) -> dict:
        """Versions and settings to keep beside the figures."""
        return {}


def serve(peer: Peer) -> None:
    """Answer requests until stdin ends."""
    # Libraries print where they like: their stdout becomes stderr.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    data, work = Path(sys.argv[1]), Path(sys.argv[2])
    work.mkdir(parents=True, exist_ok=True)
    before = pss_mb()
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "build":
            answer = timed_build(peer, data, work, request["threads"])
        elif request["do"] == "measure":
            answer = measure(peer, request)
        else:
            answer = {"index_mb": round(pss_mb() - before, 1)}
        print(json.dumps(answer), file=answers, flush=True)


def timed_build(peer: Peer, data: Path, work: Path, threads: int) -> dict:
    """Wall and CPU seconds, those of finished child processes too."""
    peer.gather(data, work)
    wall, cpu = time.perf_counter(), cpu_seconds()
    peer.build(data, work, threads)
    taken = {"wall": time.perf_counter() - wall, "cpu": cpu_seconds() - cpu}
    return {**taken, "params": list(peer.PARAMS), "about": peer.about()}


def measure(peer: Peer, request: dict) -> dict:
    """Queries a second, and what was found."""
    xq, k, size = np.load(request["queries"]), request["k"], request["batch"]
    batches = [np.ascontiguousarray(xq[start : start + size]) for start in range(0, len(xq), size)]
    peer.prepare(request["param"])
    # The first pass warms caches and says what is found; it is not timed.
    found = [peer.rows_of(peer.search(batch, k)) for batch in batches]
    np.save(request["ids"], np.concatenate(found))
    passes, wall, cpu = 0, time.perf_counter(), time.process_time()
    while not passes or time.process_time() - cpu < request["seconds"]:
        for batch in batches:
            peer.search(batch, k)
        passes += 1
    searches, cpu, wall = passes * len(xq), time.process_time() - cpu, time.perf_counter() - wall
    return {"qps_cpu": searches / cpu, "qps_wall": searches / wall}


def cpu_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def pss_mb() -> float:
    """Proportional set size of this process, in MB of 10^6 bytes, once freed memory is given
    back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/smaps_rollup") as file:
        kilobytes = next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
    return kilobytes * 1024 / 1e6

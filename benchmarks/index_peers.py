"""The index of chiasm and other libraries on the same vectors, in one run, in turn.

    python -m benchmarks.index_data pocket made300k made1m
    python -m benchmarks.index_peers pocket made300k --peers ours faiss_hnsw pyglass

Each library has a virtual environment of its own, made here with `python -m venv` and pip: their
pins of numpy exclude each other. Each has a process of its own (benchmarks/peers/NAME.py), which
builds over the same xb.npy and then waits; ROUNDS times, every process in turn is asked the text
queries that nobody learned from, in batches of 64 and one at a time, with each parameter.

Recall: of the first 10, a row counts as a hit if its exact score is at least that of the tenth best
less 1e-6, whichever of equal rows it is. Queries a second: a CPU second of the process, so that
other work on the machine does not count; those a second of wall time stand beside them. The ratio
of ours to a peer at a recall is that of the curves there, the logarithm of queries a second being
linear in recall between the neighbouring points of a curve; the median of the rounds is given, with
the lowest and the highest. A peer of one parameter is compared at the recall that it has. Memory:
Pss after the queries, less that of the process with its libraries loaded. Prints JSON, writes
benchmarks/results/index_peers.json and .png.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.index_curves import draw, fastest_at, ratios
from benchmarks.index_data import CACHE
from benchmarks.machine import ROOT, machine, tell_and_keep

RESULT = ROOT / "benchmarks" / "results" / "index_peers.json"
PEERS = ROOT / "benchmarks" / "peers"
# The script of each peer and what pip installs for it; nothing: this environment.
REQUIREMENTS: dict[str, tuple[str, ...]] = {
    "ours": (),
    "faiss_hnsw": ("faiss-cpu==1.15.1",),
    "pyglass": ("pyglass-portable==2.1.0",),
    "symqg": ("rabitqlib==0.7.1",),
    "scann_tree": ("scann==1.4.2",),
    "usearch_hnsw": ("usearch==2.26.6",),
    # It asks for numpy < 2 and any pyarrow, of which the later ones need numpy 2.
    "autofaiss_choice": ("autofaiss==2.18.0", "pyarrow==19.0.1"),
}
K, TIE = 10, 1e-6
RECALLS = (0.95, 0.99)
BATCHES = (64, 1)
ROUNDS = 7
BLOCK = 50_000  # rows scored at a time


class Process:
    """A peer in a process of its own; it works only while it is asked."""

    def __init__(self, name: str, given: argparse.Namespace, data: Path) -> None:
        python = interpreter(name, given.environments)
        work = given.work / data.name / name
        # One thread in every library that asks the environment; build requests raise it.
        single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        script = given.scripts.get(name, PEERS / f"{name}.py")
        self.name, self._ids = name, Path(tempfile.mkstemp(suffix=".npy")[1])
        self._process = subprocess.Popen(
            [python, script, data, work],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **single, "PYTHONPATH": str(ROOT)},
            text=True,
        )

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._ids.unlink()

    def ask(self, **request: Any) -> dict[str, Any]:
        """What the process answers; RuntimeError where it ends instead."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with {self._process.wait()}")
        return json.loads(line)

    def point(self, truth: Truth, param: Any, batch: int, seconds: float) -> dict[str, Any]:
        """One parameter: recall and queries a second."""
        found = self.ask(
            do="measure", param=param, batch=batch, k=K, seconds=seconds,
            queries=str(truth.queries), ids=str(self._ids),
        )  # fmt: skip
        return {"param": param, "recall": truth.recall(np.load(self._ids)), **found}


class Truth:
    """Exact scores of the queries that are asked. queries: their file."""

    def __init__(self, data: Path, queries: str = "tq_report") -> None:
        self.queries = data / f"{queries}.npy"
        self._xq = np.load(self.queries)
        self._xb = np.load(data / "xb.npy", mmap_mode="r")
        best = np.empty((len(self._xq), 0), np.float32)
        for first in range(0, len(self._xb), BLOCK):
            scores = np.concatenate([best, self._xq @ self._xb[first : first + BLOCK].T], axis=1)
            best = -np.partition(-scores, K - 1, axis=1)[:, :K]
        self._kth = best.min(axis=1)  # (Q,)

    def recall(self, ids: np.ndarray) -> float:
        """ids (Q, K), -1 for none -> mean share of hits; a row that is there twice counts once."""
        valid = (ids >= 0) & (ids < len(self._xb))
        valid &= np.concatenate([_first_times(row)[None] for row in ids])
        scores = np.einsum("qd,qkd->qk", self._xq, self._xb[np.where(valid, ids, 0)])
        return float((valid & (scores >= self._kth[:, None] - TIE)).mean())


def _first_times(row: np.ndarray) -> np.ndarray:
    first = np.zeros(len(row), bool)
    first[np.unique(row, return_index=True)[1]] = True
    return first


def main() -> None:
    """Measure, print, write, draw."""
    given = _arguments()
    refused: dict[str, str] = {}
    for name in given.peers:
        make_environment(name, given.environments, refused)
    peers = [name for name in given.peers if name not in refused]
    sets = {name: measure_set(given.data / name, peers, given) for name in given.sets}
    found = {
        "k": K, "rounds": given.rounds, "threads": 1, "build_threads": given.build_threads,
        "sets": sets, "refused": refused, "machine": machine(),
    }  # fmt: skip
    tell_and_keep(found, given.to)
    if any(one["summary"]["build_seconds"] for one in sets.values()):
        draw(sets, given.to.with_suffix(".png"))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="+", help="of benchmarks/index_data.py")
    parser.add_argument("--data", type=Path, default=CACHE / "index", help="folder of the sets")
    parser.add_argument("--environments", type=Path, default=CACHE / "environments")
    parser.add_argument("--work", type=Path, default=CACHE / "work", help="where indexes are built")
    parser.add_argument("--peers", nargs="+", default=[*REQUIREMENTS])
    parser.add_argument("--script", nargs=2, action="append", default=[], metavar=("NAME", "FILE"))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=0.3, help="CPU seconds of one point")
    parser.add_argument("--build-threads", type=int, default=2)
    parser.add_argument("--to", type=Path, default=RESULT)
    given = parser.parse_args()
    given.scripts = {name: Path(file) for name, file in given.script}
    return given


def interpreter(name: str, environments: Path) -> Path:
    """The python of a peer's environment, this one's for what needs none."""
    if not REQUIREMENTS.get(name):
        return Path(sys.executable)
    return environments / name / "bin" / "python"


def make_environment(name: str, environments: Path, refused: dict[str, str]) -> None:
    """Make a peer's environment where there is none; why it cannot be had goes to `refused`."""
    requirements, python = REQUIREMENTS.get(name), interpreter(name, environments)
    if not requirements or python.with_name(".complete").exists():
        return
    venv = [sys.executable, "-m", "venv", environments / name]
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", *requirements]
    for command in (venv, pip):
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode:
            refused[name] = (ran.stderr.strip().splitlines() or ["no reason given"])[-1]
            return
    python.with_name(".complete").touch()


def measure_set(data: Path, peers: Sequence[str], given: argparse.Namespace) -> dict[str, Any]:
    """All peers on one set, alive at once and asked in turn."""
    truth = Truth(data)
    figures: dict[str, dict[str, Any]] = {}
    with ExitStack() as alive:
        processes: list[Process] = []
        for name in peers:
            process = Process(name, given, data)
            try:
                built = process.ask(do="build", threads=given.build_threads)
            except RuntimeError as error:
                figures[name] = {"refused": str(error)}
                continue
            processes.append(alive.enter_context(process))
            points = [process.point(truth, param, BATCHES[0], 0) for param in built.pop("params")]
            figures[name] = {"build": built, "params": worth_asking(points), "rounds": []}
            print(
                f"{data.name}: {name} built in {built['wall']:.0f} s", file=sys.stderr, flush=True
            )
        for number in range(given.rounds):
            # Whoever comes first in one round comes last in the next but one.
            for process in [*processes[number:], *processes[:number]]:
                params, rounds = figures[process.name]["params"], figures[process.name]["rounds"]
                rounds.append(
                    {
                        str(batch): [
                            process.point(truth, param, batch, given.seconds) for param in params
                        ]
                        for batch in BATCHES
                    }
                )
        for process in processes:
            figures[process.name].update(process.ask(do="memory"))
    return {"peers": figures, "summary": summary(figures)}


def worth_asking(points: list[dict[str, Any]]) -> list[Any]:
    """The parameters around the recalls that are compared: those between which one of them lies,
    and their neighbours, for the picture."""
    ordered = sorted(points, key=lambda point: point["recall"])
    kept: set[int] = set()
    for recall in RECALLS:
        after = next((n for n, p in enumerate(ordered) if p["recall"] >= recall), len(ordered))
        kept.update(range(max(0, after - 2), min(len(ordered), after + 2)))
    return [ordered[n]["param"] for n in sorted(kept)]


def summary(figures: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What the bars ask: queries a second at equal recall, ratios to ours, memory, build."""
    there = {name: figure for name, figure in figures.items() if "rounds" in figure}
    found: dict[str, Any] = {}
    for batch in map(str, BATCHES):
        for recall in RECALLS:
            found[f"batches of {batch}, recall {recall}"] = {
                "qps_cpu": {
                    name: fastest_at([r[batch] for r in figure["rounds"]], recall)
                    for name, figure in there.items()
                },
                "ours_against": ratios(
                    {n: [r[batch] for r in f["rounds"]] for n, f in there.items()}, recall
                ),
            }
    found["index_mb"] = {name: figure["index_mb"] for name, figure in there.items()}
    found["build_seconds"] = {
        name: {key: round(figure["build"][key], 1) for key in ("wall", "cpu")}
        for name, figure in there.items()
    }
    return found


if __name__ == "__main__":
    main()

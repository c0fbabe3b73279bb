"""What a build takes: memory above its imports, and seconds by stage.

    python -m benchmarks.index_build --rows 1000000 4000000 --budget 300
    python -m benchmarks.index_build --rows 1000000 --columns 3 --budget 300

Collections of made vectors (benchmarks/index_data.py) with short captions, kept in the folder
`--work`. Every build is a process of its own. "import_mb" is its resident set when the modules
of a build are imported, FAISS with them, "above_mb" by what the highest one (VmHWM) exceeds that,
which counts the pages of mapped files; "allocated_mb" is the same of what is no file's (RssAnon,
looked at every 10 ms). Each size is built twice: with the plan given (`index.tune` off)
and tuned. Seconds are by the wall clock: "build" is a whole build with the plan given, "tuning" and
"truth and fit" are of the tuned one. Several sizes: the ratio of the builds' seconds, of each and
the one before. Prints JSON and writes benchmarks/results/index_build.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.index_data import CACHE, MadeWorld, as_stored
from benchmarks.machine import ROOT, machine, tell_and_keep
from benchmarks.vector_collection import write_blocks
from chiasm.pipeline.records import VectorColumn

RESULT = ROOT / "benchmarks" / "results" / "index_build.json"
DIM, SHARD = 256, 50_000
TEXTS = 10
COLUMNS = ("image", "text", "joint")


def main() -> None:
    """Make what is not there, build, print, write."""
    given = _arguments()
    if given.one is not None:
        print(json.dumps(built(given.one, COLUMNS[: given.columns], given)))
        return
    sizes = [measured(rows, given) for rows in given.rows]
    ratios = [
        {
            "rows": round(more["rows"] / fewer["rows"], 2),
            "seconds": round(more["build"]["seconds"] / fewer["build"]["seconds"], 2),
        }
        for fewer, more in itertools.pairwise(sizes)
    ]
    found = {
        "dim": DIM, "columns": given.columns, "budget_mb": given.budget, "sizes": sizes,
        "ratios": ratios, "machine": machine(),
    }  # fmt: skip
    tell_and_keep(found, given.to)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 4_000_000])
    parser.add_argument("--columns", type=int, default=1, choices=(1, 2, 3))
    parser.add_argument("--budget", type=int, default=300, help="index.build_memory_mb")
    parser.add_argument("--untuned", action="store_true", help="with the plan given alone")
    parser.add_argument("--work", type=Path, default=CACHE / "work" / "build")
    parser.add_argument("--to", type=Path, default=RESULT)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)  # build this collection
    parser.add_argument("--tune", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def measured(rows: int, given: argparse.Namespace) -> dict[str, Any]:
    """The builds of one size."""
    collection = given.work / f"{rows}x{given.columns}"
    if not (collection / "made").exists():
        make_collection(collection, rows, given.columns)
        (collection / "made").touch()
    found: dict[str, Any] = {"rows": rows, "build": in_a_process(collection, given, tune=False)}
    if not given.untuned:
        tuned = in_a_process(collection, given, tune=True)
        parts = [report.pop("seconds") for report in tuned["reports"].values()]
        beside = {
            "tuning": sum(part["queries"] + part["trials"] for part in parts),
            "truth and fit": sum(part["exact answers"] + part["fit"] for part in parts),
        }
        found["tuned"] = tuned
        found["beside"] = {name: round(seconds, 1) for name, seconds in beside.items()}
        ratio = sum(beside.values()) / (tuned["seconds"] - sum(beside.values()))
        found["beside_by_build"] = round(ratio, 2)
    return found


def in_a_process(collection: Path, given: argparse.Namespace, *, tune: bool) -> dict[str, Any]:
    options = ["--columns", str(given.columns), "--budget", str(given.budget)]
    command = [sys.executable, "-m", "benchmarks.index_build", "--one", str(collection), *options]
    ran = subprocess.run(
        [*command, *(["--tune"] if tune else [])], cwd=ROOT, stdout=subprocess.PIPE, check=True
    )
    return json.loads(ran.stdout.splitlines()[-1])


def built(collection: Path, columns: tuple[str, ...], given: argparse.Namespace) -> dict[str, Any]:
    """One build in this process."""
    from chiasm.index import IndexSettings, build_index
    from chiasm.index.faiss_runtime import load_faiss

    load_faiss()
    settings = IndexSettings(build_memory_mb=given.budget, tune=given.tune, keep_generations=1)
    if not given.tune:
        settings = IndexSettings(
            kind="projected", dims=48, nprobe=64, tune=False,
            build_memory_mb=given.budget, keep_generations=1,
        )  # fmt: skip
    imported, began = memory("VmRSS"), time.perf_counter()
    with highest_allocated() as allocated:
        summary = build_index(collection, columns=columns, settings=settings)
    spent, highest = time.perf_counter() - began, memory("VmHWM")
    return {
        "import_mb": round(imported, 1),
        "above_mb": round(highest - imported, 1),
        "allocated_mb": round(allocated[-1] - allocated[0], 1),
        "by_budget": round((highest - imported) / given.budget, 2),
        "seconds": round(spent, 1),
        "stages": summary.seconds,
        "plans": summary.columns,
        "segments": summary.segments,
        "reports": {
            column: {"promise": report.promise, "seconds": report.seconds}
            for column, report in summary.reports.items()
        },
    }


@contextmanager
def highest_allocated() -> Iterator[list[float]]:
    """MB that are no file's: at the beginning, and the most so far."""
    found, done = [memory("RssAnon")] * 2, threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            found[-1] = max(found[-1], memory("RssAnon"))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield found
    finally:
        done.set()
        watching.join()


def memory(name: str) -> float:
    """A line of this process's status, in MB of 2^20 bytes."""
    (kib,) = re.findall(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(kib) / 1024


def make_collection(path: Path, rows: int, columns: int) -> None:
    """Pictures, texts, and other pictures as `joint`. Of a single column the tenth row has a text
    all the same: those are the queries."""
    world = MadeWorld(DIM, 3)
    kinds = {"image": "picture", "text": "text", "joint": "picture"}
    names = COLUMNS[: max(2, columns)]

    def vectors(first: int, count: int) -> dict[str, VectorColumn]:
        made = {}
        for number, column in enumerate(names):
            stream = number * 10**9 + first
            has = np.ones(count, bool)
            if column == "text" and columns == 1:
                has = np.arange(count) % TEXTS == 0
            x = as_stored(world.rows(kinds[column], count, stream)) * has[:, None]
            made[column] = VectorColumn(x.astype(np.float32), has)
        return made

    path.mkdir(parents=True, exist_ok=True)
    write_blocks(path, rows, DIM, vectors, SHARD)


if __name__ == "__main__":
    main()

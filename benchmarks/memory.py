"""How much memory a run takes as its shard grows: 1,000, 10,000 and 50,000 pairs of 640 x 480.

    python -m benchmarks.memory [--encoder NAME] [--samples N...] [--no-json]

One `chiasm embed` for each size, of one shard; several times a second the proportional set sizes of
its whole process tree (driver, Ray, worker) are added up, so that shared pages count once. Told are
the sum when the worker has its model and opens the shard, and the highest after that; by what the
second exceeds the first may not grow with the shard. `free`, an encoder that costs nothing, brings
the most samples through in the least time. Writes benchmarks/results/memory.json; needs 5 GB in
benchmarks/.cache.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.machine import RESULTS, environment, keep, machine, table
from benchmarks.made_shards import CACHE, make_shards
from chiasm.pipeline.records import Sample
from chiasm.pipeline.shards import ReadSettings, list_shards, read_samples, write_shard

MB = 1 << 20
LOOK_SECONDS = 0.2
BARS = {(1_000, 10_000): 64, (10_000, 50_000): 32}  # MB


def shard_of(samples: int) -> Path:
    """One shard of so many pairs: those of the made shards over and over, under new keys."""
    path = CACHE / f"one-640x480-{samples}.tar"
    if not path.exists():
        made = list_shards([str(path) for path in make_shards(4, 1000)])
        write_shard(path, itertools.islice(renamed(itertools.cycle(made)), samples))
    return path


def renamed(shards: Iterator[Any]) -> Iterator[dict[str, Any]]:
    number = 0
    for shard in shards:
        for item in read_samples(shard, ReadSettings()):
            if isinstance(item, Sample):
                yield {"__key__": f"{number:09d}", "jpg": item.picture, "txt": item.captions[0]}
                number += 1


def tree(process: psutil.Process) -> Counter[str]:
    """The proportional set size of a process and all that it has started, bytes by name."""
    sizes: Counter[str] = Counter()
    for each in [process, *process.children(recursive=True)]:
        with contextlib.suppress(OSError, psutil.NoSuchProcess):  # it has just ended
            name = program(each.name(), each.cmdline())
            for line in Path(f"/proc/{each.pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    sizes[name] += int(line.split()[1]) << 10
    return sizes


def program(name: str, arguments: list[str]) -> str:
    """Of a Python process the script or module that it runs, of others their name."""
    if not name.startswith("python"):
        return name
    return next((Path(each).name for each in arguments if each.endswith(".py")), name)


def run(samples: int, encoder: str) -> dict[str, Any]:
    """MB at the opening of the shard and at the highest, and the pairs a second beside it."""
    shard = shard_of(samples)
    with tempfile.TemporaryDirectory() as place, tempfile.TemporaryFile("w+") as out:
        collection = Path(place) / "c"
        command = [Path(sys.executable).with_name("chiasm"), "embed", shard, "--to", collection]
        started = subprocess.Popen(
            [*map(str, command), "--encoder", encoder, "--json"],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment(),
        )
        process = psutil.Process(started.pid)
        opened, highest = Counter[str](), Counter[str]()
        while started.poll() is None:
            sizes = tree(process)
            if any((collection / "embeddings").glob("*")):
                highest = max(highest, sizes, key=Counter.total)
            else:
                opened = sizes
            time.sleep(LOOK_SECONDS)
        out.seek(0)
        lines = out.read().splitlines()
    if started.returncode:
        sys.exit(f"chiasm embed of {shard.name} ended with {started.returncode}: {lines[-1:]}")
    record = json.loads(lines[-1])
    if record["rows"] != samples:
        sys.exit(f"expected {samples} rows, found {record['rows']}")
    return {
        "samples": samples,
        "at the opening": round(opened.total() / MB, 1),
        "highest": round(highest.total() / MB, 1),
        "of which": {name: round(size / MB, 1) for name, size in highest.most_common(9)},
        "pairs_per_second": record["pairs_per_second"],
    }


def above(record: dict[str, Any]) -> float:
    """MB at the highest above what stood there when the shard was opened."""
    return record["highest"] - record["at the opening"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="free")
    parser.add_argument("--samples", nargs="+", type=int, default=[1_000, 10_000, 50_000])
    parser.add_argument("--no-json", action="store_true", help="leave the results file alone")
    given = parser.parse_args()
    found: list[dict[str, Any]] = []
    for samples in given.samples:
        found.append(run(samples, given.encoder))
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    growth = [
        {
            "from": few["samples"],
            "to": many["samples"],
            "MB": round(above(many) - above(few), 1),
            "bar": BARS.get((few["samples"], many["samples"])),
        }
        for few, many in itertools.pairwise(found)
    ]
    if not given.no_json:
        path = RESULTS / "memory.json"
        figures = json.loads(path.read_text()) if path.exists() else {}
        figures[given.encoder] = {"on": machine(), "runs": found, "growth": growth}
        keep("memory", figures)
    print(
        table(
            ("samples", "at the opening, MB", "highest, MB"), [list(r.values())[:3] for r in found]
        )
    )
    print(table(("from", "to", "grows by, MB", "at most"), [list(g.values()) for g in growth]))


if __name__ == "__main__":
    main()

"""Ten thousand stories of runs, builds and searchers beside each other, told by the product's code.

    python -m benchmarks.simulation --seeds 10000
    python -m benchmarks.simulation --replay 823
    python -m benchmarks.simulation --faults --seeds 200

Each seed is one story (`tests/support/simulated_scenarios.py`): embedding runs, builds and
searchers on machines of one name, with wrong and changing clocks, lost requests and answers, stale
lists, attempts that fail, processes that stand still or are killed. Printed are the seeds at which
a promise was broken; one of them replays the same story with each change of the store. Exits 1
where one was broken. With `--faults` the faults of `tests/support/simulated_faults.py` are put back
one by one; printed is how many stories find each. Exits 1 where one is found by none.
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "tests" / "support"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10_000, help="how many stories")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--replay", type=int, help="one seed, with every change of the store")
    parser.add_argument("--faults", action="store_true", help="put each fault back")
    arguments = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":
        return _split(arguments)
    logging.disable(logging.CRITICAL)
    if arguments.replay is not None:
        return _replay(arguments.replay)
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    return _put_back(seeds) if arguments.faults else _tell(seeds)


def _split(arguments: argparse.Namespace) -> int:
    """One process a core, none of which orders its sets by chance."""
    began = time.monotonic()
    count = 1 if arguments.replay is not None else len(os.sched_getaffinity(0))
    each = -(-arguments.seeds // count)
    command = [sys.executable, "-m", "benchmarks.simulation"]
    if arguments.faults:
        count, command = 1, [*command, "--faults"]
        each = arguments.seeds
    parts = [
        [*command, "--replay", str(arguments.replay)]
        if arguments.replay is not None
        else [*command, "--first", str(arguments.first + part * each), "--seeds", str(each)]
        for part in range(count)
    ]
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    processes = [subprocess.Popen(part, env=environment, cwd=ROOT) for part in parts]
    failed = sum(process.wait() != 0 for process in processes)
    if arguments.replay is None and not arguments.faults:
        seconds = time.monotonic() - began
        print(f"{each * count:,} stories in {seconds:.0f} s by {count} processes")
    return min(failed, 1)


def _tell(seeds: range) -> int:
    from simulated_scenarios import Story

    failures = 0
    for seed in seeds:
        if broken := Story(seed).tell():
            failures += 1
            print(f"{broken[0]} (and {len(broken) - 1} more)", flush=True)
    print(f"seeds {seeds.start} to {seeds.stop - 1}: {failures} with a broken promise", flush=True)
    return min(failures, 1)


def _put_back(seeds: range) -> int:
    import pytest
    from simulated_faults import FAULTS, put_back
    from simulated_scenarios import Story

    missed = 0
    for name in FAULTS:
        with pytest.MonkeyPatch.context() as patch:
            put_back(patch, name)
            found = sum(bool(Story(seed).tell()) for seed in seeds)
        missed += not found
        print(f"{found:5} of {len(seeds)}  {name}", flush=True)
    return min(missed, 1)


def _replay(seed: int) -> int:
    from simulated_scenarios import Story

    story = Story(seed)
    story.world.trace = print
    broken = story.tell()
    print(*broken or ["no promise was broken"], sep="\n")
    return min(len(broken), 1)


if __name__ == "__main__":
    sys.exit(main())

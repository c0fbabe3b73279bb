"""How long a newcomer waits: a fresh clone, `make demo` twice, `make test`, and a search from cold.

    python -m benchmarks.newcomer [--pip-args "..."]

Clones this checkout's HEAD into a temporary folder and runs there what README tells. Writes
benchmarks/results/newcomer.json: wall seconds of each step, on how many processors.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
SEARCHES = 5


class Found(dict[str, object]):
    """Figures, kept in the file as they come: an hour's work is not lost with its last step."""

    def __setitem__(self, name: str, figure: object) -> None:
        super().__setitem__(name, figure)
        (ROOT / "benchmarks/results/newcomer.json").write_text(json.dumps(self, indent=1) + "\n")


def timed(name: str, command: list[str], folder: Path) -> float:
    """Wall seconds of a command that must succeed."""
    began = time.monotonic()
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - began
    print(f"{name}: {seconds:.1f} s", flush=True)
    if ran.returncode:
        sys.exit(
            f"{name} failed with {ran.returncode}:\n{ran.stdout[-3000:]}\n{ran.stderr[-3000:]}"
        )
    return round(seconds, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pip-args", default="", help="passed to make as PIP_ARGS")
    parser.add_argument("--skip-tests", action="store_true")
    given = parser.parse_args()
    make = ["make", f"PIP_ARGS={given.pip_args}"]
    folder = Path(tempfile.mkdtemp(prefix="chiasm-newcomer-"))
    clone = folder / "chiasm"
    found = Found({"processors": os.cpu_count()})
    try:
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        found["commit"] = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=clone,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        found["make demo, set-up included"] = timed("make demo", [*make, "demo"], clone)
        found["make demo, again"] = timed("make demo again", [*make, "demo"], clone)
        chiasm = str(clone / ".venv/bin/chiasm")
        (collection,) = (clone / "demo").glob("*/collection")
        search = [chiasm, "search", str(collection), "a red boat"]
        times = [timed("search, cold", search, clone) for _ in range(SEARCHES)]
        found["chiasm search, median of 5"] = statistics.median(times)
        if not given.skip_tests:
            shutil.rmtree(clone / ".venv")
            found["make test, set-up included"] = timed("make test", [*make, "test"], clone)
            found["pytest alone"] = timed("pytest", [*make, "pytest"], clone)
    finally:
        shutil.rmtree(folder)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

"""How far the vectors and scores of each family are from those of its own library, called directly.

    python -m benchmarks.families

For each family a tiny folder in its real format, with random weights, and the same pictures and
texts through chiasm and through the library alone, in float32: the largest difference of any number
of a text's, a picture's and a joint vector, and of the log odds of a match; the mean difference of
what goes into the image tower, of 255, from what the library's own processor makes; the least
cosine from pictures to vectors, each side by its own processing. Prints a table and writes
benchmarks/results/families.json; exits 1 where a bar is missed.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
import transformers

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests" / "support"))

from family_differences import OWN, Differences, differences_of  # noqa: E402
from random_families import ENCODERS, MATCHERS  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "families.json"
LARGEST, INPUTS, COSINE = 1e-6, 0.05, 0.9999  # the bars


def measure() -> dict[str, Differences]:
    """family -> its differences."""
    found = {}
    with tempfile.TemporaryDirectory() as place:
        for family, make in (ENCODERS | MATCHERS).items():
            found[family] = differences_of(family, make(Path(place) / family))
    return found


def missed(found: Differences) -> bool:
    """Whether a family misses a bar."""
    numbers = (found.text, found.picture, found.joint, found.matching)
    largest = max(number for number in numbers if number is not None)
    cosine = 1.0 if found.cosine is None else found.cosine
    return largest > LARGEST or found.inputs > INPUTS or cosine < COSINE


def table(found: dict[str, Differences]) -> str:
    """The same in Markdown."""
    columns = ("text", "picture", "joint", "matching", "inputs, of 255", "cosine")
    lines = [f"| family | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for family, one in found.items():
        exact = (one.text, one.picture, one.joint, one.matching)
        cells = ["-" if number is None else f"{number:.1e}" for number in exact]
        cells += [f"{one.inputs:.3f}", "-" if one.cosine is None else f"{one.cosine:.6f}"]
        lines.append(f"| {family} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    assert OWN.keys() == (ENCODERS | MATCHERS).keys()
    found = measure()
    print(table(found))
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    record = {
        "machine": platform.processor() or platform.machine(),
        "versions": versions,
        "families": {family: asdict(one) for family, one in found.items()},
    }
    RESULT.write_text(json.dumps(record, indent=1) + "\n")
    bad = [family for family, one in found.items() if missed(one)]
    if bad:
        sys.exit(f"a bar is missed by {', '.join(bad)}")


if __name__ == "__main__":
    main()

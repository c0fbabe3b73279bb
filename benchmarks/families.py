"""How far the vectors and scores of each family are from those of its own library, called directly,
and which kinds of folders are refused.

    python -m benchmarks.families

For each family a tiny folder in its real format, with random weights, and the same pictures or
sounds and texts through chiasm and through the library alone, in float32: the largest difference of
any number of a text's, a picture's, a pair's and a query's vector, and of the score of a match; the
mean difference of what goes into the tower, of 255, from what the library's own processor makes;
the least cosine from the bytes of files to vectors, each side by its own processing. For each kind
of folder that no encoder is made of, the line that says so. Prints both tables and writes
benchmarks/results/families.json; exits 1 where a bar is missed.
"""

from __future__ import annotations

import functools
import re
import sys
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.family_tables import EXACT, tables
from benchmarks.machine import ROOT, keep, machine

sys.path.append(str(ROOT / "tests" / "support"))

from families import FAMILIES
from family_differences import FLOAT32, differences
from refused_folders import REFUSED, folder_of, line_of

from chiasm.pipeline.encoders import load_encoder, load_matcher

LARGEST, INPUTS, COSINE = 1e-6, 0.05, 0.9999  # the bars
LIBRARIES = ("transformers", "sentence-transformers", "open_clip_torch", "torch", "pillow")


def measure(place: Path) -> dict[str, dict[str, Any]]:
    """family -> the class that reads it and its differences."""
    found = {}
    for name, family in FAMILIES.items():
        folder = family.make(place / name)
        own = family.own(folder)
        load = load_encoder if own.encodes else load_matcher
        one = differences(load(f"{family.door}:{folder}", FLOAT32), own)
        found[name] = {"network": own.network, "reads": own.reads, **asdict(one)}
    return found


def refusals(place: Path) -> dict[str, dict[str, str]]:
    """kind of folder -> the door and the line."""
    made = functools.cache(lambda name: FAMILIES[name].make(place / "made" / name))
    return {
        name: {"door": kind.door, "line": line_of(kind, folder_of(kind, place / name, made))}
        for name, kind in REFUSED.items()
    }


def worst(found: dict[str, Any]) -> dict[str, float]:
    """Of all families: the largest difference of vectors and scores in millionths, that of inputs,
    the least cosine."""
    exact = [one[name] for one in found.values() for name in EXACT if one[name] is not None]
    return {
        "millionths": 1e6 * max(exact),
        "inputs": max(one["inputs"] for one in found.values()),
        "cosine": min(one["cosine"] for one in found.values() if one["cosine"] is not None),
    }


def missed(found: dict[str, Any]) -> bool:
    """Whether a family misses a bar."""
    largest = max(found[name] for name in EXACT if found[name] is not None)
    cosine = 1.0 if found["cosine"] is None else found["cosine"]
    return largest > LARGEST or found["inputs"] > INPUTS or cosine < COSINE


def architectures(found: dict[str, Any]) -> int:
    """How many there are, whichever door they are named at: names of classes without the task."""
    names = (name for one in found.values() for name in one["reads"])
    return len({re.sub(r"(Model|For[A-Z]\w+)$", "", name) for name in names})


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        found = measure(Path(place) / "families")
        refused = refusals(Path(place) / "refused")
    bad = [name for name, one in found.items() if missed(one)]
    count = {"families": len(found), "architectures": architectures(found), "refused": len(refused)}
    keep(
        "families",
        {
            "machine": machine() | {name: version(name) for name in LIBRARIES},
            "count": count | {"missed": len(bad)},
            "worst": worst(found),
            "families": found,
            "refused": refused,
        },
    )
    print(*tables(), sep="\n\n")
    if bad:
        sys.exit(f"a bar is missed by {', '.join(bad)}")


if __name__ == "__main__":
    main()

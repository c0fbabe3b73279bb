"""Where the program starts: are `pipeline`, `index` and `jobs` ours? Only then are they imported.

The three are common names. Somebody else's `pipeline`, found first, would end in a puzzling
ImportError.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent


def main() -> None:
    """Run the command line, unless a package of ours is not ours."""
    for name in ("pipeline", "index", "jobs"):
        spec = importlib.util.find_spec(name)
        found = Path(spec.origin).resolve().parent.parent if spec and spec.origin else None
        if found != HOME:
            sys.stderr.write(
                f"chiasm: package {name}: expected chiasm's own, in {HOME}, found "
                f"{f'another in {found}' if found else 'none of its own'}; "
                "run chiasm in an environment of its own, or from another folder\n"
            )
            sys.exit(2)
    importlib.import_module("jobs.cli").main()

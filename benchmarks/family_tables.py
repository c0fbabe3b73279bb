"""The tables of benchmarks/results/families.json, in Markdown, for docs/results.md.

python -m benchmarks.family_tables
"""

from __future__ import annotations

import json
import re
from typing import Any

from benchmarks.machine import RESULTS

EXACT = ("text", "seen", "joint", "matching", "query")  # fields of Differences
COLUMNS = ("text", "picture or sound", "joint", "matching", "query", "inputs", "cosine")


def tables() -> tuple[str, str]:
    """Of families, and of what is refused."""
    kept = json.loads((RESULTS / "families.json").read_text())
    return families_table(kept["families"]), refusals_table(kept["refused"])


def families_table(found: dict[str, dict[str, Any]]) -> str:
    lines = [f"| family | read by | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 2) + "|"]
    for name, one in found.items():
        door, _, family = name.partition(" ")
        exact = [_number(one[key]) for key in EXACT]
        cosine = "-" if one["cosine"] is None else f"{one['cosine']:.6f}"
        cells = (f"`{door}:` {family}", one["network"], *exact, f"{one['inputs']:.3f}", cosine)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0e}" if value else "0"


def refusals_table(found: dict[str, dict[str, str]]) -> str:
    lines = ["| named at | folder | the line, after the name |", "|---|---|---|"]
    for name, one in found.items():
        said = one["line"].partition("FOLDER: ")[2]
        said = re.sub(r"(of type \w+, \w+), .*?(?=, found)", r"\1, ...", said)  # a long list
        lines.append(f"| `{one['door']}:` | {name} | {said} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(*tables(), sep="\n\n")

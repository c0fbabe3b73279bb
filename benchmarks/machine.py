"""What a figure was measured on, the commands that are measured, and how a table is printed."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from chiasm.pipeline.errors import ChiasmError

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CORES = len(os.sched_getaffinity(0))


def machine() -> dict[str, Any]:
    """The processor, the versions and the day: what a figure means nothing without."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    )
    return {
        "date": date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "cores": CORES,
        "processor": _processor(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "pillow", "pyarrow")},
    }


def _processor() -> str:
    """The model, and of its instructions those that decide how fast matrices are multiplied."""
    table: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        name, _, value = line.partition(":")
        table.setdefault(name.strip(), value.strip())
    flags = table.get("flags", "").split()
    decisive = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{table.get('model name', platform.machine())} ({', '.join(decisive)})"


def environment() -> dict[str, str]:
    """For programs that benchmarks start: they, and what they start, know the encoder `free`."""
    paths = f"{ROOT}{os.pathsep}{ROOT / 'benchmarks' / 'site'}"
    return {**os.environ, "PYTHONPATH": paths}


def told_by(command: Sequence[str | Path]) -> dict[str, Any]:
    """What a command prints as JSON in its last line; ChiasmError where it fails."""
    ran = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    if ran.returncode:
        last = (ran.stderr.strip().splitlines() or ["nothing said"])[-1]
        raise ChiasmError(
            " ".join(map(str, command[:3])), expected="a command that succeeds", found=last
        )
    return json.loads(ran.stdout.strip().splitlines()[-1])


def chiasm(*arguments: str | Path) -> dict[str, Any]:
    """`chiasm ... --json` of this environment."""
    return told_by([Path(sys.executable).with_name("chiasm"), *arguments, "--json"])


def bare(*arguments: str | Path) -> dict[str, Any]:
    """A limit of benchmarks/bare.py, in a process of its own."""
    return told_by([sys.executable, ROOT / "benchmarks" / "bare.py", *arguments])


def keep(name: str, figures: dict[str, Any]) -> None:
    """Write benchmarks/results/<name>.json."""
    (RESULTS / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n")


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns that stand under each other, the first to the left, figures to the right."""
    cells = [list(map(str, row)) for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = (
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    )
    return "\n".join(line.rstrip() for line in lines)


def tell_and_keep(found: dict[str, Any], to: Path) -> None:
    """Print what was measured, and write it where figures are kept."""
    text = json.dumps(found, indent=2)
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(text + "\n", encoding="utf-8")
    print(text)

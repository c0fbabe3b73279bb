"""What the recipes of `chiasm train` share: options, and the lines that a person reads while a
model learns."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Annotated

import typer

from chiasm.jobs.cli.options import folder_path, print_progress
from chiasm.jobs.console import printable
from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.model.fusion import FUSIONS
from chiasm.pipeline.training.log import Record
from chiasm.pipeline.training.progress_lines import format_progress

To = Annotated[
    Path,
    typer.Option(
        parser=folder_path, metavar="PATH", help="Folder of the model and of the training's state."
    ),
]
Fusion = Annotated[
    str | None,
    typer.Option(
        help="Fuse by " + ", ".join(FUSIONS) + ". (default: the recipe's; two-tower: none)"
    ),
]
LearningRate = Annotated[
    float | None, typer.Option(help="The highest learning rate. (default: the recipe's)")
]
Seed = Annotated[
    int | None, typer.Option(help="Seed of weights and of what is drawn. (default: 0)")
]
Precision = Annotated[str | None, typer.Option(help="auto, float32 or bfloat16. (default: auto)")]


def require_target(to: Path, fusion: str | None) -> None:
    """UsageError for a target that is a file, and for an unknown fusion."""
    if to.exists() and not to.is_dir():
        expected = "a folder, or a name that is free"
        raise UsageError(f"--to {to}", expected=expected, found="a file")
    if fusion is not None and fusion not in FUSIONS:
        raise UsageError(f"--fusion {fusion!r}", expected=" or ".join(FUSIONS))


def print_record(record: Record) -> None:
    """One record of a training's progress, as a line on stderr."""
    print_progress(printable(format_progress(record)))


def print_log_line(line: str) -> None:
    """The same of a line of log.jsonl; a line that a kill cut is left out."""
    with contextlib.suppress(ValueError):
        print_record(json.loads(line))

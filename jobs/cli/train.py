"""What `chiasm train pocket` and `chiasm train two-tower` share: options, and the lines that a
person reads while a model learns."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from chiasm.jobs.cli.options import print_progress
from chiasm.jobs.console import printable, span
from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.model.fusion import FUSIONS

To = Annotated[Path, typer.Option(help="Folder of the model and of the training's state.")]
Fusion = Annotated[
    str | None, typer.Option(help="Fuse by " + ", ".join(FUSIONS) + ". (default: the recipe's)")
]
LearningRate = Annotated[
    float | None, typer.Option(help="The highest learning rate. (default: the recipe's)")
]
Seed = Annotated[int | None, typer.Option(help="Of weights and of what is drawn. (default: 0)")]
Precision = Annotated[str | None, typer.Option(help="auto, float32 or bfloat16. (default: auto)")]


def require_target(to: Path, fusion: str | None) -> None:
    """UsageError for a target that is a file, and for an unknown fusion."""
    if to.exists() and not to.is_dir():
        expected = "a folder, or a name that is free"
        raise UsageError(f"--to {to}", expected=expected, found="a file")
    if fusion is not None and fusion not in FUSIONS:
        raise UsageError(f"--fusion {fusion!r}", expected=" or ".join(FUSIONS))


class TrainingLog:
    """Prints the lines of a training's log for a person: `step 40/600  contrast 2.113 | about 3 min
    left`. Called with the lines of log.jsonl, or with plain text.

    total_steps: of the whole training, or of each of its parts (`sitting`).
    """

    def __init__(self, total_steps: int) -> None:
        self.total_steps = total_steps
        self._first: dict[str, tuple[float, int]] = {}

    def __call__(self, line: str | dict[str, Any]) -> None:
        print_progress(printable(self.format(line, time.monotonic())))

    def format(self, line: str | dict[str, Any], now: float) -> str:
        """One line of text; `now` is a monotonic clock in seconds."""
        record = _record(line)
        if record is None:
            return str(line)
        part, step = str(record.pop("sitting", "")), record.pop("step", None)
        record.pop("seconds", None)
        figures = "  ".join(_figures(record))
        if step is None:
            return figures
        began, first = self._first.setdefault(part, (now, step))
        text = f"step {step:,}/{self.total_steps:,}  {figures}"
        if step > first and step < self.total_steps:
            left = (now - began) / (step - first) * (self.total_steps - step)
            text += f" | about {span(left)} left"
        return f"{part}: {text}" if part else text


def _record(line: str | dict[str, Any]) -> dict[str, Any] | None:
    """The fields of a log line, None for plain text."""
    if isinstance(line, dict):
        return dict(line)
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _figures(record: dict[str, Any], prefix: str = "") -> list[str]:
    """`name value` of each number, those of inner objects under dotted names."""
    found: list[str] = []
    for name, value in record.items():
        if isinstance(value, dict):
            found += _figures(value, f"{prefix}{name}.")
        elif isinstance(value, float):
            found.append(f"{prefix}{name} {value:.3f}")
        else:
            found.append(f"{prefix}{name} {value}")
    return found

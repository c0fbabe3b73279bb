"""What the recipes of `chiasm train` share: options, and the lines that a person reads while a
model learns."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from chiasm.jobs.cli.options import folder_path, print_progress
from chiasm.jobs.console import printable
from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.model.config import ModelConfig
from chiasm.pipeline.model.fusion import FUSIONS
from chiasm.pipeline.model.tasks import TargetIds
from chiasm.pipeline.training.log import Record
from chiasm.pipeline.training.paired import format_share
from chiasm.pipeline.training.progress_lines import format_progress

ANSWER_COMMANDS = {
    "caption": "caption PICTURE",
    "ask": "ask PICTURE QUESTION",
    "translate": "translate TEXT --image PICTURE --to {language}",
    "sentiment": "sentiment TEXT --image PICTURE",
    "imagine": "imagine TEXT -o PICTURE.png",
}
To = Annotated[
    Path,
    typer.Option(
        parser=folder_path, metavar="PATH", help="Folder of the model and of the training's state."
    ),
]
Seed = Annotated[
    int | None, typer.Option(help="Seed of weights and of what is drawn. (default: 0)")
]
Precision = Annotated[str | None, typer.Option(help="auto, float32 or bfloat16. (default: auto)")]


def option(text: str, default: object) -> Any:
    """An option of a recipe, which is None where it is not given; default: what the recipe has."""
    return typer.Option(help=f"{text} (default: {default})")


def fusion_option(default: str) -> Any:
    """`--fusion`, the same with every recipe but for its default."""
    return option("Fuse by " + ", ".join(FUSIONS) + ".", default)


def learning_rate_option(default: float) -> Any:
    """`--learning-rate`, the same with every recipe but for its default."""
    return option("The highest learning rate, above 0, at most 1.", default)


def print_use(to: Path, kind: str, config: ModelConfig | None = None) -> None:
    """The last lines of a training: how its folder is used. kind: of encoder that opens it;
    config: of the model in it, which says whether it answers, too, and what."""
    lines = [f"{to}: trained; use it with --encoder {kind}:{to}"]
    if config is not None and config.decoder is not None:
        ids = TargetIds(config.text.vocabulary, config.decoder.prefixes, config.codes)
        for task, languages in list(ids.tasks().items())[:1]:
            language = languages[0] if languages else ""
            command = ANSWER_COMMANDS[task].format(language=language)
            if task != "translate" and language not in ("", "en"):
                command += f" --language {language}"
            lines.append(f"it answers, too: chiasm {command} --model {kind}:{to}")
    for line in lines:
        print(printable(line), flush=True)


def format_recall(figures: dict[str, float]) -> str:
    """R@1 and R@10 with standard errors."""
    return f"R@1 {with_error(figures, 'r1')}, R@10 {with_error(figures, 'r10')}"


def with_error(figures: dict[str, float], name: str) -> str:
    """A figure of a report and its standard error: `0.612 (0.008)`."""
    return format_share(figures[name], figures[f"{name}_error"])


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

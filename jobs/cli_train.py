"""`chiasm train`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import UsageError
from pipeline.model.curves import draw_curves
from pipeline.model.fusion import MIXES
from pipeline.model.train import train as run
from pipeline.model.training import TrainSettings

HELP = """Train a model that embeds, fuses and matches.

  chiasm train --preset pocket --to runs/pocket

The preset pocket makes the encoder that ships from nothing: its pictures and captions are drawn
while it learns. Kill it and run it again: it goes on from its last checkpoint and ends with the
same weights. The folder is an encoder, pocket:DIR; log.jsonl and curves.png there tell how it
went."""
PRESETS = {"pocket": TrainSettings()}


def register(app: typer.Typer) -> None:
    app.command("train", help=HELP)(train)


def train(
    preset: Annotated[str, typer.Option(help="What to train: pocket.")],
    to: Annotated[Path, typer.Option(help="Folder of the model and of the training's state.")],
    steps: Annotated[
        int | None, typer.Option(min=1, help="Of the towers. [default: the preset's]")
    ] = None,
    fusion_steps: Annotated[
        int | None,
        typer.Option(
            min=0, help="Of fusion and matching; 0: two towers alone. [default: the preset's]"
        ),
    ] = None,
    how: Annotated[
        str | None,
        typer.Option(help="Fuse by " + ", ".join(MIXES) + ". [default: the preset's]"),
    ] = None,
    towers: Annotated[
        Path | None,
        typer.Option(help="A model folder: keep its towers, learn fusion and matching alone."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of weights and of what is drawn.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    workers: Annotated[
        int, typer.Option(min=0, help="Processes that draw; 0: this one draws too.")
    ] = 1,
) -> None:
    if preset not in PRESETS:
        raise UsageError(f"--preset {preset!r}", expected=" or ".join(PRESETS))
    chosen = PRESETS[preset]
    if to.exists() and not to.is_dir():
        raise UsageError(f"--to {to}", expected="a folder, or a name that is free", found="a file")
    chosen = _fused(chosen, how, towers, fusion_steps)
    settings = replace(
        chosen,
        steps=chosen.steps if steps is None else steps,
        fusion_steps=chosen.fusion_steps if fusion_steps is None else fusion_steps,
        feed=replace(chosen.feed, seed=seed),
    )
    if not settings.fusion_steps:  # what has not learned to match shall not seem to
        settings = replace(settings, model=replace(settings.model, fusion=None))
    run(
        settings, to, device=device, precision=precision, workers=workers, towers=towers, told=_told
    )
    draw_curves(to)
    print(f"{to}: trained; use it with --encoder pocket:{to}")


def _told(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _fused(
    chosen: TrainSettings, how: str | None, towers: Path | None, fusion_steps: int | None
) -> TrainSettings:
    """The settings with the fusion that --how asks for; UsageError where there can be none."""
    if how is not None and how not in MIXES:
        raise UsageError(f"--how {how!r}", expected=" or ".join(MIXES))
    if fusion_steps == 0 and (how or towers):
        raise UsageError(
            "--fusion-steps 0",
            expected="steps of fusion, where --how or --towers asks for one",
            found="none",
            do="leave out --fusion-steps, or the others",
        )
    fusion = chosen.model.fusion
    if how is None or fusion is None:
        return chosen
    return replace(chosen, model=replace(chosen.model, fusion=replace(fusion, how=how)))

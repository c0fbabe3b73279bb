"""`chiasm train`."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

import typer

from chiasm.jobs.cli.train_request import TrainRequest
from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.model.fusion import FUSIONS

HELP = """Train a model that embeds, fuses and matches.

  chiasm train --preset pocket --to runs/pocket

  chiasm train --preset two-tower --image-encoder DIR --text-encoder DIR photos/*.tar --to mine

The preset pocket makes the encoder that ships from nothing: its pictures and captions are drawn
while it learns. The preset two-tower joins two models that you trust, any image model of
transformers and any SentenceTransformer, by what it learns from your shards, in minutes on a CPU.
Kill it and run it again: it goes on from its last checkpoint and ends with the same weights. The
folder is an encoder, pocket:DIR or two-tower:DIR; log.jsonl there tells how it went, report.json
what it is worth on data that it did not learn from."""
PRESETS = {"pocket": "chiasm.jobs.cli.train_pocket", "two-tower": "chiasm.jobs.cli.train_two_tower"}


def register(app: typer.Typer) -> None:
    app.command("train", help=HELP)(train)


# The options, in the order of --help.
Preset = Annotated[str, typer.Option(help="What to train: pocket or two-tower.")]
To = Annotated[Path, typer.Option(help="Folder of the model and of the training's state.")]
Shards = Annotated[
    list[str] | None, typer.Argument(metavar="SHARDS...", help="two-tower: what to learn from.")
]
ImageEncoder = Annotated[
    str | None, typer.Option(help="two-tower: an image model of transformers, folder or id.")
]
TextEncoder = Annotated[
    str | None, typer.Option(help="two-tower: a SentenceTransformer, folder or id.")
]
CaptionField = Annotated[
    str | None, typer.Option(help="two-tower: take captions from this json field, before txt.")
]
Steps = Annotated[
    int | None, typer.Option(min=1, help="Of towers or heads. [default: the preset's]")
]
FusionSteps = Annotated[
    int | None,
    typer.Option(
        min=0, help="pocket: of fusion and matching; 0: two towers alone. [default: the preset's]"
    ),
]
How = Annotated[
    str | None, typer.Option(help="Fuse by " + ", ".join(FUSIONS) + ". [default: the preset's]")
]
Towers = Annotated[
    Path | None, typer.Option(help="pocket: a model folder; keep its towers, learn the rest alone.")
]
Seed = Annotated[int, typer.Option(help="Of weights and of what is drawn.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Precision = Annotated[str, typer.Option(help="auto, float32 or bfloat16.")]
Workers = Annotated[
    int, typer.Option(min=0, help="pocket: processes that draw; 0: this one draws too.")
]
Gallery = Annotated[
    int | None,
    typer.Option(min=10, help="pocket: scenes that it is measured on. [default: the preset's]"),
]
Processes = Annotated[
    int | None,
    typer.Option(min=1, help="pocket: learn in so many processes on Ray. [default: here]"),
]
Address = Annotated[
    str | None, typer.Option(help="A running Ray for --processes: host:port or auto.")
]


def train(
    preset: Preset,
    to: To,
    shards: Shards = None,
    image_encoder: ImageEncoder = None,
    text_encoder: TextEncoder = None,
    caption_field: CaptionField = None,
    steps: Steps = None,
    fusion_steps: FusionSteps = None,
    how: How = None,
    towers: Towers = None,
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    workers: Workers = 1,
    gallery: Gallery = None,
    processes: Processes = None,
    address: Address = None,
) -> None:
    request = TrainRequest(
        to=to, shards=tuple(shards or ()), image_encoder=image_encoder, text_encoder=text_encoder,
        caption_field=caption_field, steps=steps, fusion_steps=fusion_steps, how=how,
        towers=towers, seed=seed, device=device, precision=precision, workers=workers,
        gallery=gallery, processes=processes or 0, address=address,
    )  # fmt: skip
    if preset not in PRESETS:
        raise UsageError(f"--preset {preset!r}", expected=" or ".join(PRESETS))
    request.require_sound()
    importlib.import_module(PRESETS[preset]).run(request)

"""`chiasm train two-tower`."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import typer

from chiasm.jobs.cli.options import (
    AllowQuery,
    Assignments,
    CaptionField,
    Device,
    Preset,
    Shards,
    list_command_shards,
)
from chiasm.jobs.cli.train import (
    Precision,
    Seed,
    To,
    format_recall,
    fusion_option,
    learning_rate_option,
    option,
    print_record,
    print_use,
    require_target,
    with_error,
)
from chiasm.jobs.config import Settings, compose
from chiasm.jobs.console import printable
from chiasm.pipeline.errors import ChiasmError
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.training.two_tower.loop import FUSION, TwoTowerSettings
from chiasm.pipeline.training.two_tower.loop import train_two_tower as learn
from chiasm.pipeline.training.two_tower.trainer import TrainSettings

HELP = """
  chiasm train two-tower 'photos/*.tar' --image-encoder DIR --text-encoder DIR --to mine

Any image model of transformers and any SentenceTransformer are joined by what is learned from your
shards, in minutes on a CPU; both models stay as they are. Use the result with --encoder
two-tower:DIR. Kill it and run it again: it goes on from its last checkpoint."""


# Figures of a report, and what people call the vectors.
VECTORS = {
    "image": "the picture",
    "text": "its first caption",
    "mean": "both, even mean",
    "best_mean": "both, best weighted mean",
    "fusion": "both, learned fusion",
}
USES = (
    *("train.steps", "train.fusion", "train.learning_rate", "train.seed"),
    *("encoder.precision", "encoder.device", "read", "decode", "batch"),
)


def train_two_tower(
    shards: Shards,
    to: To,
    image_encoder: Annotated[
        str, typer.Option(help="An image model of transformers, folder or id.")
    ],
    text_encoder: Annotated[str, typer.Option(help="A SentenceTransformer, folder or id.")],
    caption_field: CaptionField = None,
    steps: Annotated[
        int | None, option("Training steps of the heads.", TrainSettings.steps)
    ] = None,
    fusion: Annotated[str | None, fusion_option("none")] = None,
    learning_rate: Annotated[
        float | None, learning_rate_option(TrainSettings.learning_rate)
    ] = None,
    seed: Seed = None,
    device: Device = None,
    precision: Precision = None,
    preset: Preset = "laptop",
    assignments: Assignments = None,
    allow_query: AllowQuery = False,
) -> None:
    settings = compose(preset, assignments or (), {
        "train.steps": steps, "train.fusion": fusion, "train.learning_rate": learning_rate,
        "train.seed": seed, "read.caption_field": caption_field, "encoder.device": device,
        "encoder.precision": precision,
    }, uses=USES)  # fmt: skip
    require_target(to, settings.train.fusion)
    recipe = two_tower_settings(image_encoder, text_encoder, settings)
    shard_list = list_command_shards(shards, allow_query)
    report = learn(recipe, shard_list, to, print_record)
    for line in format_report(report):
        print(printable(line))
    print_use(to, "two-tower")
    require_whole(report, len(shard_list))


def require_whole(report: dict[str, Any], shards: int) -> None:
    """ChiasmError where a shard was cut or damaged."""
    damaged = report["damaged"]
    if damaged:
        raise ChiasmError(
            f"{len(damaged)} of {shards} shards",
            expected="whole tar files",
            found=f"cut or damaged {', '.join(damaged[:5])}: learned from what came before",
            do="fetch them again and train into another folder; chiasm embed names them, and where",
        )


def two_tower_settings(image: str, text: str, settings: Settings) -> TwoTowerSettings:
    """The recipe with what was asked for."""
    recipe, options = TwoTowerSettings(image, text), settings.train
    fusion, train = recipe.fusion, replace(recipe.train, seed=options.seed)
    if options.fusion is not None:
        fusion = replace(FUSION, fusion=options.fusion)
    if options.steps is not None:
        train = replace(train, steps=options.steps)
    if options.learning_rate is not None:
        train = replace(train, learning_rate=options.learning_rate)
    return replace(
        recipe,
        fusion=fusion,
        train=train,
        read=settings.read,
        decode=settings.decode,
        batch=settings.batch,
        encoder=EncoderSettings(
            precision=settings.encoder.precision, device=settings.encoder.device
        ),
    )


def format_dropped(dropped: dict[str, int]) -> str:
    """How many samples were dropped, and why."""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items())
    return f"{sum(dropped.values()):,} samples dropped{f' ({reasons})' if reasons else ''}"


def format_report(report: dict[str, Any]) -> list[str]:
    """The report in lines for a person."""
    seconds = report["seconds_of_this_run"]
    lines = [
        f"{report['pairs']:,} pairs, {format_dropped(report['lost'])}; this run: features "
        f"{seconds['features']:.0f} s, learning {seconds['learning']:.0f} s"
    ]
    if report["unread"]:
        unread = ", ".join(f"{count:,} {reason}" for reason, count in report["unread"].items())
        lines.append(f"captions that could not be read: of samples with {unread}")
    own, matching = report["text_to_image"], report["matching"]
    lines += [
        f"on {report['held_out']:,} pictures held out, with standard errors:",
        f"  a picture by its own captions, {report['captions']:,} queries: {format_recall(own)}",
        f"  the first 20 of a caption matched again: R@1 {with_error(matching, 'r1_before')} -> "
        f"{with_error(matching, 'r1_after')}",
    ]
    if not report["queries"]:
        return [*lines, "one caption a picture: joint vectors are the even mean, not evaluated"]
    lines.append(
        f"  by captions other than the first, {report['queries']:,} queries, by the vector of"
    )
    lines += [
        f"    {label:<26}{format_recall(report[name])}"
        for name, label in VECTORS.items()
        if name in report
    ]
    if "fusion" in report:
        ships = report["fusion_ships"]
        lines.append(
            "the fusion beats the best weighted mean and ships"
            if ships
            else "the fusion does not beat the best weighted mean for certain: the even mean ships"
        )
    return lines

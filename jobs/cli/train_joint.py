"""`chiasm train joint`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from chiasm.jobs.cli.options import (
    AllowQuery,
    Assignments,
    CaptionField,
    Device,
    Preset,
    Shards,
    folder_path,
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
from chiasm.jobs.cli.train_two_tower import format_dropped, require_whole
from chiasm.jobs.config import Settings, compose
from chiasm.jobs.console import printable
from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.make import absolute_name
from chiasm.pipeline.model.checkpoint import SHIPPED, load_config
from chiasm.pipeline.model.config import FusionConfig
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.training.joint.build import FROZEN_FUSION
from chiasm.pipeline.training.joint.loop import DECODER_STEPS
from chiasm.pipeline.training.joint.loop import train_joint as learn
from chiasm.pipeline.training.joint.samples import SampleSettings
from chiasm.pipeline.training.joint.settings import JointSettings

HELP = """
  chiasm train joint 'photos/*.tar' --towers hf:ID_OR_DIR --to mine
  chiasm train joint 'photos/*.tar' --to mine
  chiasm train joint 'photos/*.tar' --start pocket --to mine

With --towers an encoder stays as it is; a fusion and matching are learned from its vectors, in
minutes on a CPU. Use the result with --encoder joint:DIR. Without --towers, towers are trained too,
and a decoder where json has questions, translations or sentiment: use it with --encoder pocket:DIR,
and with --model pocket:DIR for answers.
A tenth of the pictures is held out; another tenth is for validation, which sets the mean's weight.
A joint vector that does not clearly beat the best weighted mean on the held-out tenth becomes that
mean. Training runs in one process. Kill it and
run it again: it goes on from its last checkpoint."""

USES = (
    *("train.steps", "train.fusion_steps", "train.decoder_steps", "train.fusion", "train.batch"),
    *("train.learning_rate", "train.seed", "encoder.precision", "encoder.device"),
    *("read", "decode", "batch"),
)
WAYS = {  # figures of a report, and what people call the vectors
    "image": "the picture",
    "text": "its first caption",
    "mean": "both, best weighted mean",
    "joint": "both, learned fusion",
    "encoder_joint": "both, as the encoder does",
}

Steps = Annotated[int | None, option("Training steps of the towers.", JointSettings.steps)]
FusionSteps = Annotated[
    int | None,
    option(
        "Training steps of fusion and matching.",
        f"{JointSettings.fusion_steps}; with --towers {JointSettings.frozen_steps}",
    ),
]
DecoderSteps = Annotated[
    int | None,
    option(
        "Training steps of the decoder; 0: none.",
        f"{DECODER_STEPS}; none where json has no tasks",
    ),
]
Fusion = Annotated[
    str | None, fusion_option(f"{FusionConfig.fusion}; with --start that of the model")
]
LearningRate = Annotated[float | None, learning_rate_option(JointSettings.learning_rate)]


def train_joint(
    shards: Shards,
    to: To,
    towers: Annotated[
        str | None,
        typer.Option(
            help="An encoder that stays as it is: hf:ID_OR_DIR, two-tower:DIR, pocket ... "
            "(default: none, towers are learned)"
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(help="Begin with the weights of pocket or of a model folder. (default: new)"),
    ] = None,
    caption_field: CaptionField = None,
    steps: Steps = None,
    fusion_steps: FusionSteps = None,
    decoder_steps: DecoderSteps = None,
    fusion: Fusion = None,
    learning_rate: LearningRate = None,
    seed: Seed = None,
    device: Device = None,
    precision: Precision = None,
    preset: Preset = "laptop",
    assignments: Assignments = None,
    allow_query: AllowQuery = False,
) -> None:
    settings = compose(preset, assignments or (), {
        "train.steps": steps, "train.fusion_steps": fusion_steps,
        "train.decoder_steps": decoder_steps, "train.fusion": fusion,
        "train.learning_rate": learning_rate, "train.seed": seed,
        "read.caption_field": caption_field, "encoder.device": device,
        "encoder.precision": precision,
    }, uses=USES)  # fmt: skip
    require_target(to, settings.train.fusion)
    recipe = joint_settings(towers, start, settings)
    shard_list = list_command_shards(shards, allow_query)
    report = learn(recipe, shard_list, to, print_record)
    _print_report(report, to)
    require_whole(report, len(shard_list))


def _print_report(report: dict[str, Any], to: Path) -> None:
    for line in format_report(report):
        print(printable(line))
    print_use(to, report["encoder"], load_config(to) if report["tasks"] else None)


def joint_settings(towers: str | None, start: str | None, settings: Settings) -> JointSettings:
    """The recipe with what was asked for; UsageError for options that exclude each other."""
    options, recipe = settings.train, JointSettings()
    if towers is not None and (start or options.steps or options.decoder_steps):
        given = "--start" if start else "--steps" if options.steps else "--decoder-steps"
        raise UsageError(
            f"--towers {towers} {given}",
            expected="one of the two: on top of a frozen encoder only fusion and matching learn",
            found="both",
            do=f"leave out {given}, or set the length by --fusion-steps",
        )
    if towers is None and settings.encoder.precision == "bfloat16":
        raise UsageError(
            "--precision bfloat16",
            expected="--towers with it: it is the precision of a frozen encoder",
            found="towers to train, which is done in float32",
            do="leave out --precision, or give --towers",
        )
    if options.fusion_steps == 0:
        raise UsageError("--fusion-steps 0", expected="1 or more", found="0")
    fusion = None
    if options.fusion is not None:
        fusion = replace(FROZEN_FUSION if towers else FusionConfig(), fusion=options.fusion)
    steps = options.fusion_steps
    return replace(
        recipe,
        encoder=None if towers is None else absolute_name(towers),
        start=None if start is None else SHIPPED if start == "pocket" else folder_of(start),
        steps=options.steps or recipe.steps,
        fusion_steps=steps or recipe.fusion_steps,
        frozen_steps=steps or recipe.frozen_steps,
        decoder_steps=options.decoder_steps,
        batch=options.batch or recipe.batch,
        frozen_batch=options.batch or recipe.frozen_batch,
        learning_rate=options.learning_rate or recipe.learning_rate,
        seed=options.seed,
        fusion=fusion,
        samples=SampleSettings(settings.read, settings.decode, settings.batch),
        device=EncoderSettings(
            precision=settings.encoder.precision, device=settings.encoder.device
        ),
    )


def folder_of(start: str) -> Path:
    """`DIR` or `pocket:DIR` -> the folder."""
    return folder_path(start.removeprefix("pocket:"))


def format_report(report: dict[str, Any]) -> list[str]:
    """The report in lines for a person."""
    seconds = report["seconds_of_this_run"]
    lines = [
        f"{report['pairs']:,} pictures with captions, {format_dropped(report['dropped'])}; this "
        f"run: reading {seconds['reading']:.0f} s, learning {seconds['learning']:.0f} s"
    ]
    if report["unread"]:
        unread = ", ".join(f"{count:,} {reason}" for reason, count in report["unread"].items())
        lines.append(f"texts that could not be read: of samples with {unread}")
    if report["bad_entries"]:
        lines.append(f"{report['bad_entries']:,} entries of json left out")
    if report["tasks"]:
        lines.append("the decoder learned " + ", ".join(report["tasks"]))
        if report["too_long"]:
            lines.append(
                f"{report['too_long']:,} captions and entries of json were too long for it"
            )
    matching = report["matching"]
    lines += [
        f"on {report['held_out']:,} pictures held out, with standard errors:",
        f"  a picture by its own captions, {report['held_out_captions']:,} queries: "
        + format_recall(report["text_to_image"]),
        f"  matching, true against hard wrong pictures: {with_error(matching, 'accuracy')} right",
        f"  the first 20 of a caption matched again: R@1 {with_error(matching, 'r1_before')} -> "
        f"{with_error(matching, 'r1_after')}",
    ]
    lines += [
        f"  {task} of the decoder, {figures['examples']:,} examples: {_format_decoder(figures)}"
        for task, figures in report.get("decoder", {}).items()
    ]
    if not report["queries"]:
        mean = f"the mean with {report['text_weight']:g} text"
        return [*lines, f"one caption a picture: joint vectors are {mean}, not evaluated"]
    lines.append(
        f"  by captions other than the first, {report['queries']:,} queries, by the vector of"
    )
    for name, label in WAYS.items():
        if name in report:
            weight = f", {report['text_weight']:g} text" if name == "mean" else ""
            lines.append(f"    {label + weight:<36}{format_recall(report[name])}")
    ships = "the learned fusion beats the best weighted mean and ships"
    mean = "the learned fusion does not beat the best weighted mean for certain: the mean ships"
    return [*lines, ships if report["joint_ships"] else mean]


def _format_decoder(figures: dict[str, float]) -> str:
    if "right" in figures:
        return f"{with_error(figures, 'right')} right"
    return f"{figures['nats_per_token']:.2f} nats a token of people's own words"

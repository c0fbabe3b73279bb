"""`chiasm train pocket`."""

from __future__ import annotations

import contextlib
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from chiasm.jobs.cli.options import Address, Assignments, Device, Preset, folder_path
from chiasm.jobs.cli.train import (
    Precision,
    Seed,
    To,
    fusion_option,
    learning_rate_option,
    option,
    print_log_line,
    print_record,
    print_use,
    require_target,
)
from chiasm.jobs.config import Settings, TrainOptions, compose
from chiasm.jobs.console import printable
from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.model.checkpoint import load_config, load_model
from chiasm.pipeline.model.config import FusionConfig, keeps_words
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.pretrained.device_and_precision import resolve_device
from chiasm.pipeline.training.curves import draw_curves
from chiasm.pipeline.training.pocket.loop import train
from chiasm.pipeline.training.pocket.report import format_report, write_report
from chiasm.pipeline.training.pocket.settings import TrainSettings, measured_tasks

LOG = logging.getLogger(__name__)

HELP = """
  chiasm train pocket --to runs/pocket
  chiasm train pocket --towers runs/pocket --fusion gated --to runs/gated
  chiasm train pocket --to runs/both --processes 2

Pictures and captions are drawn while it learns; no shards are read. Use the result with --encoder
pocket:DIR, and with --model pocket:DIR where an answer is written. Kill it and run it again: it
goes on from its last checkpoint."""

Steps = Annotated[int | None, option("Training steps of the two towers.", TrainSettings.steps)]
FusionSteps = Annotated[
    int | None,
    option(
        "Training steps of fusion and matching; 0: those of --towers, or none.",
        TrainSettings.fusion_steps,
    ),
]
ImageTokenSteps = Annotated[
    int | None,
    option(
        "Training steps of the codes that pictures are drawn by; 0: those of --towers, or none.",
        TrainSettings.image_token_steps,
    ),
]
DecoderSteps = Annotated[
    int | None,
    option(
        "Training steps of the decoder, which writes; 0: that of --towers, or none.",
        TrainSettings.decoder_steps,
    ),
]
Fusion = Annotated[str | None, fusion_option(FusionConfig.fusion)]
LearningRate = Annotated[float | None, learning_rate_option(TrainSettings.learning_rate)]
Towers = Annotated[
    Path | None,
    typer.Option(
        parser=folder_path,
        metavar="PATH",
        help="A model folder; keep its towers and tokenizer, learn the rest alone.",
    ),
]
Gallery = Annotated[int | None, option("Scenes that it is measured on.", TrainSettings.gallery)]
Workers = Annotated[
    int | None, typer.Option(help="Processes that draw; 0: this one draws too. (default: 1)")
]
Processes = Annotated[int | None, typer.Option(help="Number of processes on Ray. (default: here)")]


def train_pocket(
    to: To,
    steps: Steps = None,
    fusion_steps: FusionSteps = None,
    image_token_steps: ImageTokenSteps = None,
    decoder_steps: DecoderSteps = None,
    fusion: Fusion = None,
    towers: Towers = None,
    learning_rate: LearningRate = None,
    seed: Seed = None,
    gallery: Gallery = None,
    workers: Workers = None,
    processes: Processes = None,
    address: Address = None,
    device: Device = None,
    precision: Precision = None,
    preset: Preset = "laptop",
    assignments: Assignments = None,
) -> None:
    settings = compose(preset, assignments or (), {
        "train.steps": steps, "train.fusion_steps": fusion_steps,
        "train.image_token_steps": image_token_steps, "train.decoder_steps": decoder_steps,
        "train.fusion": fusion,
        "train.learning_rate": learning_rate, "train.seed": seed, "train.gallery": gallery,
        "train.drawing_processes": workers, "train.processes": processes,
        "encoder.device": device, "encoder.precision": precision,
    }, uses=("train", "encoder.precision", "encoder.device"))  # fmt: skip
    require_target(to, settings.train.fusion)
    recipe = train_settings(settings.train, towers)
    on_ray = bool(settings.train.processes or address)
    if on_ray:
        _train_on_ray(recipe, settings, to, towers, address)
    else:
        train(
            recipe,
            to,
            device=settings.encoder.device,
            precision=settings.encoder.precision,
            workers=settings.train.drawing_processes,
            towers=towers,
            report=print_record,
        )
    draw_curves(to)
    # What the workers of a cluster have, this process may lack.
    where = "auto" if on_ray else settings.encoder.device
    encoding = EncoderSettings(precision=settings.encoder.precision, device=where)
    report = write_report(to, recipe.gallery, encoding, measured_tasks(recipe))
    for line in format_report(report):
        print(printable(line))
    print_use(to, "pocket", load_config(to))


def _train_on_ray(
    recipe: TrainSettings, settings: Settings, to: Path, towers: Path | None, address: str | None
) -> None:
    """Learn in several processes; Ray is loaded by these alone."""
    from chiasm.jobs.train_model import TrainJob, train_on_ray

    device = settings.encoder.device
    job = TrainJob(
        settings=recipe,
        folder=to,
        towers=towers,
        workers=settings.train.processes or 1,
        cpus=1,
        # The accelerators of a cluster are not seen from here: they have to be asked for.
        gpu=device.startswith("cuda") or resolve_device(device).type == "cuda",
        precision=settings.encoder.precision,
        drawing=settings.train.drawing_processes,
        address=address,
    )
    with contextlib.redirect_stdout(sys.stderr):  # what Ray prints is no result
        train_on_ray(job, print_log_line)


def _require_no_token_steps(steps: int | None) -> None:
    """A decoder that is kept draws by the codes that it has learned."""
    if steps:
        raise UsageError(
            f"--image-token-steps {steps}",
            expected="a decoder that is trained after them",
            found="--decoder-steps 0, and a decoder in --towers that draws by its own codes",
            do="leave out one of them",
        )


def train_settings(options: TrainOptions, towers: Path | None) -> TrainSettings:
    """The recipe with what was asked for: with 0 steps, fusion and decoder are those of the towers'
    model, where it has them. UsageError where there can be no fusion as asked."""
    recipe = TrainSettings()
    fusion_steps, decoder_steps = options.fusion_steps, options.decoder_steps
    if fusion_steps == 0 and options.fusion:
        raise UsageError(
            "--fusion-steps 0",
            expected="steps of fusion, where --fusion asks for one",
            found="none",
            do="leave out one of them",
        )
    fusion, decoder = recipe.model.fusion, recipe.model.decoder
    if options.fusion is not None and fusion is not None:
        fusion = replace(fusion, fusion=options.fusion)
    tokens, token_steps = recipe.model.image_tokens, options.image_token_steps
    if 0 in (fusion_steps, token_steps, decoder_steps):
        kept = load_model(towers)[0].config if towers else None
        if fusion_steps == 0:  # what has not learned to match shall not seem to
            fusion = kept.fusion if kept else None
        if token_steps == 0:
            tokens = kept.image_tokens if kept else None
        if decoder_steps == 0:
            decoder = kept.decoder if kept else None
        if decoder_steps == 0 and kept and kept.decoder:
            if kept.decoder.reads_fused and fusion_steps != 0:
                LOG.warning("the decoder of %s reads what its own fusion makes: left out", towers)
                decoder = None
            else:
                _require_no_token_steps(token_steps)
                tokens, token_steps = kept.image_tokens, 0
    if decoder is not None and decoder_steps != 0:
        decoder = replace(decoder, reads_fused=keeps_words(fusion))
    return replace(
        recipe,
        steps=options.steps or recipe.steps,
        fusion_steps=recipe.fusion_steps if fusion_steps is None else fusion_steps,
        image_token_steps=recipe.image_token_steps if token_steps is None else token_steps,
        decoder_steps=recipe.decoder_steps if decoder_steps is None else decoder_steps,
        learning_rate=options.learning_rate or recipe.learning_rate,
        data=replace(recipe.data, seed=options.seed, batch=options.batch or recipe.data.batch),
        corpus=options.corpus or recipe.corpus,
        calibrated=options.calibrated or recipe.calibrated,
        gallery=options.gallery or recipe.gallery,
        model=replace(recipe.model, fusion=fusion, decoder=decoder, image_tokens=tokens),
    )

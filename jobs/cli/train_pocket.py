"""`chiasm train --preset pocket`."""

from __future__ import annotations

import contextlib
import importlib
import sys
from dataclasses import replace

from chiasm.jobs.cli.train_request import TrainRequest, tell
from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.pretrained.device import resolve_device
from chiasm.pipeline.training.curves import draw_curves
from chiasm.pipeline.training.pocket.loop import train
from chiasm.pipeline.training.pocket.report import format_report, write_report
from chiasm.pipeline.training.pocket.trainer import TrainSettings
from chiasm.pipeline.training.progress import format_progress


def run(request: TrainRequest) -> None:
    """Train, draw the curves, and say how to use what was made."""
    request.require_none_of("pocket", "shards", "image_encoder", "text_encoder", "caption_field")
    settings = settings_of(request)
    if request.processes or request.address:
        _on_ray(settings, request)
    else:
        train(
            settings,
            request.to,
            device=request.device,
            precision=request.precision,
            workers=request.workers,
            towers=request.towers,
            report=lambda record: tell(format_progress(record)),
        )
    draw_curves(request.to)
    # What the workers of a cluster have, this process may lack.
    device = "auto" if request.processes or request.address else request.device
    encoding = EncoderSettings(precision=request.precision, device=device)
    for line in format_report(write_report(request.to, settings.gallery, encoding)):
        print(line)
    print(f"{request.to}: trained; use it with --encoder pocket:{request.to}")


def _on_ray(settings: TrainSettings, request: TrainRequest) -> None:
    """Learn in several processes; Ray is loaded by these alone."""
    module = importlib.import_module("chiasm.jobs.train_model")
    job = module.TrainJob(
        settings=settings,
        folder=request.to,
        towers=request.towers,
        workers=request.processes or 1,
        cpus=1,
        # The accelerators of a cluster are not seen from here: they have to be asked for.
        gpu=request.device.startswith("cuda") or resolve_device(request.device).type == "cuda",
        precision=request.precision,
        drawing=request.workers,
        address=request.address,
    )
    with contextlib.redirect_stdout(sys.stderr):  # what Ray prints is no result
        module.train_on_ray(job, tell)


def settings_of(request: TrainRequest) -> TrainSettings:
    """The preset with what was asked for; UsageError where there can be no fusion as asked."""
    preset = TrainSettings()
    if request.fusion_steps == 0 and (request.how or request.towers):
        raise UsageError(
            "--fusion-steps 0",
            expected="steps of fusion, where --how or --towers asks for one",
            found="none",
            do="leave out --fusion-steps, or the others",
        )
    fusion, fusion_steps = preset.model.fusion, request.fusion_steps
    if request.how is not None and fusion is not None:
        fusion = replace(fusion, fusion=request.how)
    if fusion_steps == 0:  # what has not learned to match shall not seem to
        fusion = None
    return replace(
        preset,
        steps=preset.steps if request.steps is None else request.steps,
        fusion_steps=preset.fusion_steps if fusion_steps is None else fusion_steps,
        data=replace(preset.data, seed=request.seed),
        gallery=request.gallery or preset.gallery,
        model=replace(preset.model, fusion=fusion),
    )

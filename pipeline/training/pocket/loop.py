"""Training: the picture-book world in, a model folder out.

A run is a function of its settings; killed and started again it goes on from its last checkpoint
and ends with the same weights. The same command uses an accelerator where there is one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from chiasm.pipeline.model.inference import encode_images, encode_texts
from chiasm.pipeline.model.joint import JointNetwork
from chiasm.pipeline.pretrained.device_and_precision import (
    PRECISIONS,
    resolve_device,
    resolve_precision,
)
from chiasm.pipeline.training.distributed import rank_and_world_size, wait_for_all
from chiasm.pipeline.training.log import Pace, Record, Report, append_log
from chiasm.pipeline.training.pocket.data import TrainBatch, learn_tokenizer, train_batches
from chiasm.pipeline.training.pocket.evaluate import gallery_recall
from chiasm.pipeline.training.pocket.trainer import STATE, Training, TrainSettings
from chiasm.pipeline.training.progress_lines import format_kept_files, format_progress

LOG = logging.getLogger(__name__)
SEED_STRIDE = 1_000_000  # between the seeds of processes that train together
STAGES = ("towers", "fusion")


def log_progress(record: Record) -> None:
    """Report a record to this module's logger."""
    LOG.info("%s", format_progress(record))


def train(
    settings: TrainSettings,
    folder: Path,
    *,
    device: str = "auto",
    precision: str = "auto",
    workers: int = 1,
    towers: Path | None = None,
    report: Report = log_progress,
) -> list[dict[str, float]]:
    """Train to the end, or go on with the training in `folder`; -> losses of each step done now.

    towers: a model folder to take the towers from, so that only the second stage is left to do.

    Leaves in the folder: the state, the model (weights of the average), and log.jsonl. report gets
    each record of the log, and a message at the end. device and precision as in EncoderSettings;
    workers: processes that draw, 0 for none.
    """
    where = resolve_device(device)
    dtype = PRECISIONS[resolve_precision(precision, where)]
    tokenizer = learn_tokenizer(settings.model.text.vocabulary, settings.corpus)
    training = Training(settings, where, tokenizer)
    rank, _ = rank_and_world_size()
    if (folder / STATE).exists():
        training.resume(folder)
    elif towers is not None:
        training.load_towers(towers)
    folder.mkdir(parents=True, exist_ok=True)
    wait_for_all()  # no process writes what another has not read yet
    done: list[dict[str, float]] = []
    started = time.monotonic() - training.seconds
    with closing(_batches(training, workers)) as batches:
        pace, in_fusion = Pace(training.step), training.fusing
        for batch in batches:
            done.append(training.train_step(batch, dtype))
            training.seconds = time.monotonic() - started
            if rank == 0:  # the other processes write and report nothing
                _write(training, folder, done, pace, report, dtype)
            if training.fusing != in_fusion:  # steps of the second stage are faster
                pace, in_fusion = Pace(training.step), training.fusing
    if rank == 0:
        report({"message": format_kept_files(folder, [STATE])})
    return done


def _write(
    training: Training,
    folder: Path,
    done: list[dict[str, float]],
    pace: Pace,
    report: Report,
    precision: torch.dtype,
) -> None:
    """Log, checkpoint and evaluation after a step, where they are due."""
    settings, step = training.settings, training.step
    last, in_towers = settings.all_steps, step <= settings.steps
    at_end = step in (settings.steps, last)
    stage, total = STAGES[not in_towers], settings.steps if in_towers else last
    if step % settings.log_every == 0 or at_end:
        losses = _mean(done[-settings.log_every :])
        seconds = {"seconds": round(training.seconds, 1), **pace.at(step, total)}
        _log(folder, report, {"stage": stage, "step": step, **seconds, **losses})
    if step == last and training.fusing:
        training.calibrate()
    if step % settings.checkpoint_every == 0 or at_end:
        training.save(folder)
    if in_towers and (step % settings.evaluate_every == 0 or at_end):
        recall = evaluate_average(training, precision)
        _log(folder, report, {"stage": stage, "step": step, "total": total, "recall": recall})


def _batches(training: Training, workers: int) -> Generator[TrainBatch, None, None]:
    """The batches from the training's step on, those of each stage of its own size."""
    settings, step = training.settings, training.step
    rank, _ = rank_and_world_size()
    data = replace(settings.data, seed=settings.data.seed + rank * SEED_STRIDE)
    stages = (
        (settings.steps, data),
        (settings.all_steps, replace(data, batch=settings.fusion_batch)),
    )
    for last, of_stage in stages:
        if step < last:
            made = train_batches(step, last, of_stage, training.tokenizer, workers)
            with closing(made) as batches:
                yield from batches
            step = last


def evaluate_average(training: Training, precision: torch.dtype) -> dict[str, Any]:
    """Recall of the averaged weights on the fixed gallery, which no batch was drawn from."""
    settings = training.settings
    model = JointNetwork(training.config).to(training.device).eval()
    model.load_state_dict(training.ema.tensors)
    model.to(precision)
    return gallery_recall(
        lambda images: encode_images(model, images),
        lambda texts: encode_texts(model, training.tokenizer, texts),
        settings.gallery,
        settings.gallery_seed,
    )


def _mean(done: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each loss of the last step, rounded for people, over the steps that had them."""
    same_stage = [item for item in done if item.keys() == done[-1].keys()]
    return {name: round(sum(d[name] for d in same_stage) / len(same_stage), 4) for name in done[-1]}


def _log(folder: Path, report: Report, record: Record) -> None:
    append_log(folder, record)
    report(record)

"""Training: the picture-book world in, a model folder out.

A run is a function of its settings; killed and started again it goes on from its last checkpoint
and ends with the same weights. The same command uses an accelerator where there is one. `chiasm
train` is the command; where only `pipeline/` is installed, python -m
chiasm.pipeline.training.pocket.loop is.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from chiasm.pipeline.model.inference import encode_images, encode_texts
from chiasm.pipeline.model.joint import JointNetwork
from chiasm.pipeline.pretrained.device import PRECISIONS, resolve_device, resolve_precision
from chiasm.pipeline.training.distributed import rank_and_world_size, wait_for_all
from chiasm.pipeline.training.pocket.data import (
    DataSettings,
    TrainBatch,
    learn_tokenizer,
    train_batches,
)
from chiasm.pipeline.training.pocket.evaluate import measure
from chiasm.pipeline.training.pocket.trainer import STATE, Training, TrainSettings

LOG = logging.getLogger(__name__)
APART = 1_000_000  # seeds of processes that learn together


def train(
    settings: TrainSettings,
    folder: Path,
    *,
    device: str = "auto",
    precision: str = "auto",
    workers: int = 1,
    towers: Path | None = None,
    told: Callable[[str], None] = LOG.info,
) -> list[dict[str, float]]:
    """Train to the end, or go on with the training in `folder`; -> losses of each step done now.

    towers: a model folder to take the towers from, so that only the second stage is left to do.

    Leaves in the folder: the state, the model (weights of the average), and log.jsonl, a line now
    and then. device and precision as in EncoderSettings; workers: processes that draw, 0 for none.
    """
    where = resolve_device(device)
    dtype = PRECISIONS[resolve_precision(precision, where)]
    tokenizer = learn_tokenizer(settings.model.text.vocabulary, settings.corpus)
    training = Training(settings, where, tokenizer)
    rank, _ = rank_and_world_size()
    if (folder / STATE).exists():
        training.resume(folder)
    elif towers is not None:
        training.take_towers(towers)
    folder.mkdir(parents=True, exist_ok=True)
    wait_for_all()  # none has written yet what another is still to read
    done: list[dict[str, float]] = []
    started = time.monotonic() - training.seconds
    last = settings.all_steps
    batches = _lessons(training, workers)
    with closing(batches):
        for batch in batches:
            done.append(training.learn(batch, dtype))
            training.seconds = time.monotonic() - started
            step, at_end = training.step, training.step in (settings.steps, last)
            if rank:
                continue  # the first process writes and tells
            if step % settings.log_every == 0 or at_end:
                losses = _mean(done[-settings.log_every :])
                _log(folder, told, {"step": step, "seconds": round(training.seconds, 1), **losses})
            if step == last and training.fusing:
                training.calibrate()
            if step % settings.checkpoint_every == 0 or at_end:
                training.save(folder)
            if step <= settings.steps and (step % settings.evaluate_every == 0 or at_end):
                _log(folder, told, {"step": step, "recall": evaluate_average(training, dtype)})
    return done


def _lessons(training: Training, workers: int) -> Generator[TrainBatch, None, None]:
    """The batches from the training's step on, those of each stage of its own size."""
    settings, step = training.settings, training.step
    rank, _ = rank_and_world_size()
    # Processes that learn together draw what no other does.
    feed = replace(settings.feed, seed=settings.feed.seed + rank * APART)
    stages = (
        (settings.steps, feed),
        (settings.all_steps, replace(feed, batch=settings.fusion_batch)),
    )
    for last, feed in stages:
        if step < last:
            with closing(train_batches(step, last, feed, training.tokenizer, workers)) as batches:
                yield from batches
            step = last


def evaluate_average(training: Training, precision: torch.dtype) -> dict[str, Any]:
    """Recall of the averaged weights on the fixed gallery, which no batch was drawn from."""
    settings = training.settings
    model = JointNetwork(training.config).to(training.device).eval()
    model.load_state_dict(training.average)
    model.to(precision)
    return measure(
        lambda images: encode_images(model, images),
        lambda texts: encode_texts(model, training.tokenizer, texts),
        settings.gallery,
        settings.gallery_seed,
    )


def _mean(done: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each loss of the last step, rounded for people, over the steps that had them."""
    alike = [each for each in done if each.keys() == done[-1].keys()]
    return {name: round(sum(d[name] for d in alike) / len(alike), 4) for name in done[-1]}


def _log(folder: Path, told: Callable[[str], None], line: dict[str, Any]) -> None:
    text = json.dumps(line)
    with (folder / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(text + "\n")
    told(text)


def main(arguments: list[str] | None = None) -> None:
    """The command line: see --help."""
    parser = argparse.ArgumentParser(
        prog="python -m chiasm.pipeline.training.pocket.loop", description=__doc__
    )
    parser.add_argument("--to", type=Path, required=True, help="folder of the state and the model")
    parser.add_argument("--steps", type=int, default=TrainSettings.steps, help="of the towers")
    parser.add_argument("--fusion-steps", type=int, default=TrainSettings.fusion_steps)
    parser.add_argument("--batch", type=int, default=DataSettings.batch)
    parser.add_argument("--rate", type=float, default=TrainSettings.rate)
    parser.add_argument("--seed", type=int, default=DataSettings.seed)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw pictures")
    parser.add_argument(
        "--threads", type=int, default=0, help="of the CPU; 0 leaves torch's choice"
    )
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if given.threads:
        torch.set_num_threads(given.threads)
    feed = replace(DataSettings(), seed=given.seed, batch=given.batch)
    settings = TrainSettings(
        steps=given.steps, fusion_steps=given.fusion_steps, rate=given.rate, feed=feed
    )
    train(settings, given.to, device=given.device, precision=given.precision, workers=given.workers)


if __name__ == "__main__":
    main()

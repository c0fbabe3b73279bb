"""Training: the picture-book world in, a model folder out.

A run is a function of its settings; killed and started again it goes on from its last checkpoint
and ends with the same weights. The same command uses an accelerator where there is one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.model.checkpoint import load_model, load_state, load_tokenizer
from chiasm.pipeline.model.joint import JointNetwork
from chiasm.pipeline.model.tokenizer import Tokenizer
from chiasm.pipeline.pretrained.device_and_precision import (
    PRECISIONS,
    resolve_device,
    resolve_precision,
)
from chiasm.pipeline.training.distributed import rank_and_world_size, wait_for_all
from chiasm.pipeline.training.log import Pace, Record, Report, append_log
from chiasm.pipeline.training.pocket.data import WORLDS, learn_tokenizer, map_steps
from chiasm.pipeline.training.pocket.settings import TrainSettings
from chiasm.pipeline.training.pocket.stages import Evaluate, Stage, ends_of
from chiasm.pipeline.training.pocket.state import STATE
from chiasm.pipeline.training.pocket.task_data import task_texts, tasks_in
from chiasm.pipeline.training.pocket.trainer import Training
from chiasm.pipeline.training.progress_lines import format_kept_files, format_progress

LOG = logging.getLogger(__name__)


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

    towers: a model folder to take towers and tokenizer from, so that only the later stages are left
    to do; of these, what has 0 steps in the settings is taken from it as well.

    Leaves in the folder: the state, the model (weights of the average), and log.jsonl. report gets
    each record of the log, and a message at the end. device and precision as in EncoderSettings;
    workers: processes that draw, 0 for none.
    """
    where = resolve_device(device)
    (_require_steps if towers is None else _require_no_new_source)(settings)
    tokenizer = _tokenizer(settings, folder, towers)
    training = Training(settings, where, tokenizer, resolve_precision(precision, where))
    if towers is not None:
        training.load_towers(towers)
    if (folder / STATE).exists():
        training.resume(folder)
    folder.mkdir(parents=True, exist_ok=True)
    wait_for_all()  # no process writes what another has not read yet
    done: list[dict[str, float]] = []
    started = time.monotonic() - training.seconds
    rank, _ = rank_and_world_size()
    for stage, end in zip(training.stages, ends_of(training.stages), strict=True):
        if stage.begins_joint and training.stage is stage and training.stage_step == 0:
            training.begin_joint(stage.begins_joint)
        pace = Pace(training.step)  # steps of one stage are faster than those of another
        evaluate = _Evaluation(training, stage)
        with closing(_batches(training, stage, end, workers)) as batches:
            for batch in batches:
                done.append(training.train_step(batch))
                training.seconds = time.monotonic() - started
                if training.step == end and stage.calibrated:
                    training.calibrate(stage.calibrated)
                if rank == 0:  # the other processes write and report nothing
                    _write(training, stage, end, folder, done, pace, evaluate, report)
    if rank == 0:
        report({"message": format_kept_files(folder, [STATE])})
    return done


def _tokenizer(settings: TrainSettings, folder: Path, towers: Path | None) -> Tokenizer:
    """That of the towers; else that which a training in this folder has written, as learning it
    again takes longer than the rest of going on; else a new one."""
    if towers is not None:
        return load_model(towers)[1]
    if (folder / STATE).exists():
        load_state(folder / STATE)  # a torn one is named before the files beside it
        # Not the whole model: a kill may have come between its weights and its config.
        return load_tokenizer(folder)
    return tokenizer_of(settings)


def _require_steps(settings: TrainSettings) -> None:
    """UsageError for a fusion or a decoder that nothing trains, without a model to take it from."""
    model = settings.model
    for name, part, steps in (
        ("fusion", model.fusion, settings.fusion_steps),
        ("image_token", model.image_tokens, settings.image_token_steps),
        ("decoder", model.decoder, settings.decoder_steps),
    ):
        if part is not None and not steps:
            raise UsageError(
                f"{name}_steps 0",
                expected=f"steps of the {name}, or towers of a model that has one",
                found=f"a {name} that nothing trains",
                do=f"set {name}_steps or towers, or leave it out of the model",
            )


def _require_no_new_source(settings: TrainSettings) -> None:
    """UsageError for a decoder that is kept while the fusion that it reads is trained anew: it
    would read what it has not learned."""
    decoder = settings.model.decoder
    if settings.fusion_steps and not settings.decoder_steps and decoder and decoder.reads_fused:
        raise UsageError(
            "decoder_steps 0",
            expected="steps of a decoder that reads the fusion, where the fusion is trained",
            found=f"{settings.fusion_steps} steps of the fusion, none of the decoder",
            do="set decoder_steps, set fusion_steps to 0, or leave the decoder out of the model",
        )


def tokenizer_of(settings: TrainSettings) -> Tokenizer:
    """The tokenizer of a training from nothing. It knows the words of captions and of all tasks,
    whether or not a decoder is trained now: one may be trained on these towers later."""
    world, samples = WORLDS[settings.data.world], settings.corpus
    tasks = tasks_in(world, (*settings.examples, *settings.pictures))
    more = task_texts(tasks, samples, world)
    return learn_tokenizer(settings.model.text.vocabulary, samples, world, more)


def _batches(
    training: Training, stage: Stage, end: int, workers: int
) -> Generator[Any, None, None]:
    """The batches of a stage from the training's step on, or what it keeps of them; none where the
    stage is done."""
    rank, world_size = rank_and_world_size()
    draw = partial(
        stage.draw,
        settings=stage.data,
        tokenizer=training.tokenizer,
        rank=rank,
        world_size=world_size,
    )
    once = end - stage.steps + stage.steps // stage.rounds  # the step after the last one drawn for
    drawn = map_steps(draw, range(training.step, once), workers)
    return _in_rounds(training, stage, drawn) if stage.keep else drawn


def _in_rounds(
    training: Training, stage: Stage, drawn: Generator[Any, None, None]
) -> Generator[Any, None, None]:
    """What a stage keeps of its batches, as often as it goes through them."""
    kept = []
    with closing(drawn):
        for batch in drawn:
            kept.append(training.keep(batch))
            yield kept[-1]
    for _ in range(1, stage.rounds):
        yield from kept


def _write(
    training: Training,
    stage: Stage,
    end: int,
    folder: Path,
    done: list[dict[str, float]],
    pace: Pace,
    evaluate: _Evaluation,
    report: Report,
) -> None:
    """Log, checkpoint and evaluation after a step of a stage, where they are due."""
    settings, step = training.settings, training.step
    record = {"stage": stage.name, "step": step}
    if step % settings.log_every == 0 or step == end:
        seconds = {"seconds": round(training.seconds, 1), **pace.at(step, end)}
        _log(folder, report, record | seconds | _mean(done[-settings.log_every :]))
    # What a stage has kept is not in a state: such a stage is done in one run, or anew.
    if step == end or (step % settings.checkpoint_every == 0 and stage.keep is None):
        training.save(folder)
    found = evaluate() if step % stage.evaluate_every == 0 or step == end else {}
    if found:
        _log(folder, report, record | {"total": end} | found)


class _Evaluation:
    """The evaluation of a stage, made at its first call in this run."""

    def __init__(self, training: Training, stage: Stage) -> None:
        self.training, self.stage = training, stage
        self._evaluate: Evaluate | None = None

    def __call__(self) -> dict[str, Any]:
        """Fields of a record about the average; none where there is nothing to evaluate."""
        if self.stage.evaluation is None:
            return {}
        training, model = self.training, average_network(self.training)
        if self._evaluate is None:
            self._evaluate = self.stage.evaluation(model, training.tokenizer, training.settings)
        return self._evaluate(model)


def average_network(training: Training) -> JointNetwork:
    """The model of the averaged weights, in the training's precision."""
    model = JointNetwork(training.config).to(training.device).eval()
    model.load_state_dict(training.ema.tensors)
    return model.to(PRECISIONS[training.precision])


def _mean(done: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each loss of the last step, rounded for people, over the steps that had them."""
    same_stage = [item for item in done if item.keys() == done[-1].keys()]
    return {name: round(sum(d[name] for d in same_stage) / len(same_stage), 4) for name in done[-1]}


def _log(folder: Path, report: Report, record: Record) -> None:
    append_log(folder, record)
    report(record)

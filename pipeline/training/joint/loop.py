"""Training a joint network on shards: shards in, a model folder out.

    files of samples, one a shard, once     (samples.py)
    towers of its own, or none              then fusion and matching, then a decoder (objective.py)
    which joint vector ships; figures       (evaluate.py)
    the model, report.json, curves.png

A run is a function of its settings and shards; killed and started again it goes on where it was and
ends with the same weights.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chiasm.pipeline.encoders import Encoder, load_encoder
from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.model.checkpoint import FILES, save_model, write_file
from chiasm.pipeline.model.frozen_joint import FrozenJointNetwork, save_frozen_joint
from chiasm.pipeline.model.joint import JointNetwork
from chiasm.pipeline.model.tokenizer import Tokenizer
from chiasm.pipeline.pretrained.device_and_precision import resolve_device
from chiasm.pipeline.records import Shard
from chiasm.pipeline.storage import remove_abandoned
from chiasm.pipeline.training.curves import draw_curves
from chiasm.pipeline.training.joint.build import (
    frozen_network,
    frozen_stages,
    own_config,
    own_network,
    own_stages,
    prefixes_of,
    require_image_and_text,
    start_of,
    tokenizer_of,
)
from chiasm.pipeline.training.joint.data import (
    HELD_OUT,
    TUNING,
    Samples,
    count_too_long,
    decoded_rows,
    decoder_batch,
    pair_batch,
    rows_of_step,
)
from chiasm.pipeline.training.joint.evaluate import (
    best_weight,
    gallery_of,
    gallery_rows,
    held_out_r1,
    select,
)
from chiasm.pipeline.training.joint.evaluate_decoder import decoder_figures
from chiasm.pipeline.training.joint.objective import Network, Stage
from chiasm.pipeline.training.joint.samples import Computed, PixelReader, VectorReader, compute
from chiasm.pipeline.training.joint.settings import JointSettings
from chiasm.pipeline.training.joint.trainer import STATE, Training
from chiasm.pipeline.training.log import Pace, Report, append_log
from chiasm.pipeline.training.progress_lines import format_kept_files
from chiasm.pipeline.training.two_tower.held_out import SPLIT
from chiasm.pipeline.training.two_tower.resume import require_same, write_facts

FORMAT = "joint training 1"
MIN_PAIRS, MIN_HELD_OUT = 20, 4
REPORT, SETTINGS, SAMPLES = "report.json", "settings.json", "samples"
DECODER_STEPS = 4000  # where json has anything for the decoder to learn
TASKS = ("caption", "ask", "translate", "sentiment")


def train_joint(
    settings: JointSettings, shards: Sequence[Shard], folder: Path, report: Report
) -> dict[str, Any]:
    """Train to the end, or go on with the training in `folder`; -> the content of report.json.

    report gets records of progress, see `training/log.py`. UsageError where the folder is of other
    settings or of other shards, and where too few pairs are left to train on.
    """
    started = time.monotonic()
    encoder = None
    if settings.encoder is not None:
        encoder = load_encoder(settings.encoder, settings.device)
        require_image_and_text(encoder)
    start = start_of(settings.start)
    side = (start[0].config if start else settings.model).image.side
    reader = PixelReader(side) if encoder is None else VectorReader(encoder)
    folder.mkdir(parents=True, exist_ok=True)  # not before: a refused training leaves no folder
    remove_abandoned(folder)
    facts = _facts(settings, shards, encoder)
    require_same(folder / SETTINGS, facts)
    computed = compute(shards, reader, folder / SAMPLES, settings.samples, report)
    read = time.monotonic()
    samples = Samples(computed.paths)
    train_rows = samples.trained_on
    _require_enough(samples)
    write_facts(folder / SETTINGS, facts)  # not before: with more shards it may begin here
    if encoder is not None:
        parts = _frozen_parts(encoder, settings)
    else:
        parts = _own_parts(samples, train_rows, settings, start)
        if start and start[0].decoder is not None and not parts.tasks:
            report({"message": "nothing teaches the decoder of --start here: it is left out"})
    run = _Run(settings, parts, samples, train_rows, folder, report)
    network, figures = run.train()
    parts.save(folder, network)
    found = _report(computed, samples, figures, parts)
    if parts.tasks:
        assert isinstance(network, JointNetwork)
        found["decoder"] = decoder_figures(network, samples, parts.tasks)
        found["too_long"] = count_too_long(samples, parts.decoded, network.config)
    found["seconds_of_this_run"] = {
        "reading": round(read - started, 1),
        "learning": round(time.monotonic() - read, 1),
    }
    write_file(folder / REPORT, (json.dumps(found, indent=2) + "\n").encode())
    draw_curves(folder)
    report({"message": format_kept_files(folder, (SAMPLES, STATE))})
    return found


@dataclass(frozen=True)
class _Parts:
    """What differs between towers of one's own and a frozen encoder. build: a new network; save:
    the folder of one; tasks: of the decoder; decoded: numbers of the samples that it learns from;
    scheme: of the encoder that opens the folder."""

    build: Callable[[], Network]
    stages: list[Stage]
    save: Callable[[Path, Network], None]
    tasks: tuple[str, ...]
    decoded: np.ndarray
    scheme: str


def _frozen_parts(encoder: Encoder, settings: JointSettings) -> _Parts:
    def save(folder: Path, network: Network) -> None:
        assert isinstance(network, FrozenJointNetwork)
        save_frozen_joint(folder, network)

    name = settings.encoder or encoder.name
    return _Parts(
        lambda: frozen_network(encoder, name, settings),
        frozen_stages(settings),
        save,
        (),
        np.zeros(0, dtype=np.int64),
        "joint",
    )


def _own_parts(
    samples: Samples,
    rows: np.ndarray,
    settings: JointSettings,
    start: tuple[JointNetwork, Tokenizer] | None,
) -> _Parts:
    there = {example.task for row in rows for example in samples.examples(row)}
    decoder_steps = settings.decoder_steps
    if decoder_steps is None:
        decoder_steps = DECODER_STEPS if there else 0
    vocabulary = settings.model.text.vocabulary
    tokenizer = start[1] if start else tokenizer_of(samples, rows, vocabulary)
    begun = start[0] if start else None
    decoded = decoded_rows(samples, rows)
    prefixes = prefixes_of(samples, decoded) if decoder_steps else ()
    config = own_config(settings, begun.config if begun else None, len(tokenizer), prefixes)
    samples.read_texts(tokenizer, config.text.context)

    def save(folder: Path, network: Network) -> None:
        save_model(folder, network.state_dict(), config, tokenizer)

    return _Parts(
        lambda: own_network(config, begun, settings),
        own_stages(settings, decoder_steps),
        save,
        tuple(task for task in TASKS if task == "caption" or task in there)
        if decoder_steps
        else (),
        decoded,
        "pocket",
    )


@dataclass(frozen=True)
class _Run:
    """The training in one folder, after its samples are there."""

    settings: JointSettings
    parts: _Parts
    samples: Samples
    rows: np.ndarray
    folder: Path
    report: Report

    def train(self) -> tuple[Network, dict[str, Any]]:
        """-> the network that ships, in evaluation mode, and its figures."""
        settings = self.settings
        device = resolve_device(settings.device.device)
        training = Training(self.parts.build().to(device), self.parts.stages, settings)
        training.resume(self.folder)
        started = time.monotonic() - training.seconds
        for stage, end in zip(training.stages, training.ends, strict=True):
            if training.stage is stage and training.stage_step == 0 and stage.name == "fusion":
                self._begin_joint(training)
            pace = Pace(training.step)
            while training.step < end:
                losses = training.train_step(self._batch(training))
                training.seconds = time.monotonic() - started
                if training.step == end and stage.name == "fusion":
                    network = self._average(training)
                    tuning, gallery = (
                        gallery_of(network, self.samples, device, fold)
                        for fold in (TUNING, HELD_OUT)
                    )
                    training.figures = select(network, tuning, gallery, settings.seed)
                    training.take_average(network)
                self._write(training, stage, end, losses, pace)
        assert training.figures is not None
        return self._average(training), training.figures

    def _begin_joint(self, training: Training) -> None:
        """Let the joint vector begin as the best weighted mean."""
        network = self._average(training)
        weight = best_weight(gallery_of(network, self.samples, training.device, TUNING))
        assert network.fusion is not None
        network.fusion.reset_to_mean((weight, 1 - weight))
        training.take_average(network)

    def _average(self, training: Training) -> Network:
        return training.average(self.parts.build())

    def _batch(self, training: Training) -> Any:
        """The batch of the next step."""
        step, seed, size = training.step, self.settings.seed, training.stage.batch
        if training.stage.name != "decoder":
            return pair_batch(self.samples, rows_of_step(self.rows, size, step, seed), step, seed)
        assert isinstance(training.network, JointNetwork)
        config = training.network.config
        rows = rows_of_step(self.parts.decoded, size, step, seed)
        return decoder_batch(self.samples, rows, self.parts.tasks, config, step, seed)

    def _write(
        self, training: Training, stage: Stage, end: int, losses: dict[str, float], pace: Pace
    ) -> None:
        """Log, evaluation and checkpoint after a step of a stage, where they are due."""
        settings, step = self.settings, training.step
        last = step == end
        if last or step % settings.log_every == 0:
            record = {"stage": stage.name, "step": step, **pace.at(step, end)}
            record |= {name: round(value, 4) for name, value in losses.items()}
            if stage.name == "towers" and (last or step % settings.evaluate_every == 0):
                network = self._average(training)
                gallery = gallery_of(network, self.samples, training.device)
                record["held_out_r1"] = round(held_out_r1(gallery), 4)
            append_log(self.folder, record)
            self.report(record)
        if last or step % settings.checkpoint_every == 0:
            training.save(self.folder)


def _require_enough(samples: Samples) -> None:
    """UsageError where there are too few pairs to train on, or pictures to measure on, or where
    these all have one caption."""
    tuning, held_out = (
        len(np.unique(samples.picture[samples.fold == fold])) for fold in (TUNING, HELD_OUT)
    )
    train = len(samples.trained_on)
    if train < MIN_PAIRS or min(tuning, held_out) < MIN_HELD_OUT:
        raise UsageError(
            "SHARDS",
            expected=f"{MIN_PAIRS} or more pairs to train on, {MIN_HELD_OUT} pictures to choose by "
            f"and {MIN_HELD_OUT} held out",
            found=f"{train}, {tuning} and {held_out}",
            do="give more shards",
        )
    for fold in (TUNING, HELD_OUT):
        rows = gallery_rows(samples, fold)
        if len(np.unique(samples.caption_numbers(rows, samples.counts[rows] - 1))) < 2:
            raise UsageError(
                "SHARDS",
                expected="pictures with different captions",
                found=f"one caption of all {len(rows):,} pictures that are measured on",
            )


def _report(
    computed: Computed, samples: Samples, figures: dict[str, Any], parts: _Parts
) -> dict[str, Any]:
    return {
        "pairs": computed.pairs,
        "captions": computed.captions,
        "trained_on": len(samples.trained_on),
        "dropped": computed.dropped,
        "unread": computed.unread,
        "bad_entries": computed.bad_entries,
        "damaged": computed.damaged,
        "tasks": list(parts.tasks),
        "encoder": parts.scheme,
        **figures,
    }


def _facts(
    settings: JointSettings, shards: Sequence[Shard], encoder: Encoder | None
) -> dict[str, Any]:
    """What the weights depend on."""
    start = None
    if settings.start is not None:
        files = (settings.start / name for name in FILES)
        start = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
    samples = settings.samples
    return {
        "format": FORMAT,
        "held_out": SPLIT,
        "towers": settings.encoder,
        "towers_fingerprint": encoder and encoder.fingerprint,
        "precision": encoder and encoder.precision,
        "start": start,
        "device": torch.device(resolve_device(settings.device.device)).type,
        "learn": settings.facts(),
        "read": asdict(samples.read),
        "decode": samples.decode.as_stored(),
        "shards": {shard.id: f"{shard.size} bytes, version {shard.version}" for shard in shards},
        "order": [shard.id for shard in shards],  # batches are drawn by row
    }

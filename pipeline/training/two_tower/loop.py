"""Training on two frozen towers: shards in, a model folder out, in four steps.

    features of every shard, once     (features.py), one pair a picture    (copies.py)
    prepare, train and solve without the held-out samples; select: how much hubness reduction,
        does the fusion ship?
    prepare, train and solve again on all samples, as selected
    write the model, and report.json: every figure on held-out samples, though the power of hubness
        reduction and the weight of the best mean were selected by them

Killed and started again it goes on where it was: feature shards that are whole stay, and so does a
preparation that was finished; each stage has its checkpoint, and a selection is not made again.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from chiasm.pipeline.batches import BatchSettings
from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.images import DecodeSettings
from chiasm.pipeline.model.checkpoint import write_file
from chiasm.pipeline.model.config import FusionConfig
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.records import Shard
from chiasm.pipeline.shards import ReadSettings
from chiasm.pipeline.storage import remove_abandoned
from chiasm.pipeline.training.curves import draw_curves
from chiasm.pipeline.training.log import Pace, Report, append_log
from chiasm.pipeline.training.progress_lines import format_kept_files, format_progress
from chiasm.pipeline.training.two_tower.closed_form import solve
from chiasm.pipeline.training.two_tower.copies import one_pair_a_picture
from chiasm.pipeline.training.two_tower.features import FeatureSettings, compute, format_captions
from chiasm.pipeline.training.two_tower.held_out import SPLIT
from chiasm.pipeline.training.two_tower.prepare import Statistics, prepare, survey
from chiasm.pipeline.training.two_tower.resume import require_same, write_facts
from chiasm.pipeline.training.two_tower.select import MAX_GALLERY, select
from chiasm.pipeline.training.two_tower.stream import Pair, stream
from chiasm.pipeline.training.two_tower.trainer import Training, TrainSettings, train
from chiasm.pipeline.two_tower.checkpoint import (
    FORMAT,
    config_to_json,
    save_two_tower,
)
from chiasm.pipeline.two_tower.frozen_towers import ImageTower, TextTower
from chiasm.pipeline.two_tower.network import TwoTowerConfig, TwoTowerNetwork

LOG = logging.getLogger(__name__)
MIN_PAIRS, MIN_HELD_OUT = 20, 4
REPORT, SELECTION, SETTINGS = "report.json", "selection.json", "settings.json"
LOG_EVERY = 10  # steps
# Of `--fusion NAME`, with its name: small, as thousands of pairs are few.
FUSION = FusionConfig(fusion="gated", width=128, depth=1, heads=2, slots=4)
SELECTING, FINAL = "choosing", "all-samples"  # the two stages, and the names of their files


@dataclass(frozen=True)
class TwoTowerSettings:
    """What is trained on what. fusion None: the joint vector is the mean."""

    image: str
    text: str
    fusion: FusionConfig | None = None
    train: TrainSettings = field(default_factory=TrainSettings)
    read: ReadSettings = field(default_factory=ReadSettings)
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    batch: BatchSettings = field(default_factory=BatchSettings)
    encoder: EncoderSettings = field(default_factory=EncoderSettings)


def train_two_tower(
    settings: TwoTowerSettings, shards: Sequence[Shard], folder: Path, report: Report
) -> dict[str, Any]:
    """Train to the end, or go on with the training in `folder`; -> the content of report.json.

    report gets records of progress, see `training/log.py`. UsageError where the folder is of
    other settings, or too few pairs are left to train on.
    """
    started = time.monotonic()
    report = _logged(report)
    image = ImageTower(settings.image, settings.encoder)
    text = TextTower(settings.text, settings.encoder)
    folder.mkdir(parents=True, exist_ok=True)  # not before: a refused training leaves no folder
    for item in (folder, *folder.glob("expanded/*")):
        remove_abandoned(item)
    facts = _facts(settings, shards, image, text)
    require_same(folder / SETTINGS, facts)
    computed = compute(shards, image, text, folder / "features", _features(settings), report)
    paths = one_pair_a_picture(computed.paths)
    statistics = survey(paths)
    report({"message": f"found {format_captions(statistics.pairs, statistics.captions)}"})
    cached = time.monotonic()
    config = _config(settings, statistics, image, text)
    names = [path.name for path in paths]
    # A training of an earlier version has the copies of pictures apart.
    require_same(folder / SETTINGS, {**facts, "features": names})
    write_facts(folder / SETTINGS, {**facts, "config": config_to_json(config), "features": names})
    run = _Run(settings, config, paths, statistics, image.device, folder, report)
    selected = run.select()
    save_two_tower(folder, run.final(selected))
    found = {
        "pairs": statistics.pairs,
        "captions": statistics.captions,
        "lost": computed.dropped,
        "unread": computed.unread,
        "damaged": computed.damaged,
        **selected["figures"],
        "seconds_of_this_run": {
            "features": round(cached - started, 1),
            "learning": round(time.monotonic() - cached, 1),
        },
    }
    write_file(folder / REPORT, (json.dumps(found, indent=2) + "\n").encode())
    draw_curves(folder)
    kept = ("features", "expanded", _state(SELECTING), _state(FINAL))
    report({"message": format_kept_files(folder, kept)})
    return found


def _logged(report: Report) -> Report:
    """Reports that are also logged."""

    def report_and_log(record: dict[str, Any]) -> None:
        LOG.info("%s", format_progress(record))
        report(record)

    return report_and_log


def format_recall(figures: dict[str, Any]) -> str:
    """The recall of the selection in one line; figures: of `select`."""
    recall = f"a picture by its own captions {figures['text_to_image']['r1']:.3f}"
    if figures["queries"]:
        others = (f"{name} {figures[name]['r1']:.3f}" for name in ("image", "text", "mean"))
        recall += f"; by other captions than the first: {', '.join(others)}"
    return f"R@1 on {figures['held_out']:,} held-out pictures: {recall}"


def _state(stage: str) -> str:
    return f"{stage}.safetensors"


@dataclass(frozen=True)
class _Run:
    """The training in one folder, after its features are there."""

    settings: TwoTowerSettings
    config: TwoTowerConfig
    paths: list[Path]
    statistics: Statistics
    device: torch.device
    folder: Path
    report: Report

    def select(self) -> dict[str, Any]:
        """The selection on held-out samples: read, or made now and written."""
        path = self.folder / SELECTION
        if path.exists():
            return json.loads(path.read_text())
        count = self.statistics.pairs - self.statistics.learnable
        if count < MIN_HELD_OUT or self.statistics.learnable < MIN_PAIRS:
            raise UsageError(
                "SHARDS",
                expected=f"{MIN_PAIRS} or more pictures to train on, and {MIN_HELD_OUT} held out",
                found=f"{self.statistics.learnable} and {count}",
                do="give more shards",
            )
        network = self._trained(SELECTING, self.config, every_sample=False)
        selection = select(network, self._held_out(SELECTING))
        selected = {
            "hub_power": network.config.hubness_power,
            "fusion": selection.fusion,
            "evidence": network.match_weights.tolist(),
            "figures": selection.figures,
        }
        self.report({"message": format_recall(selection.figures)})
        write_file(path, json.dumps(selected).encode())
        return selected

    def final(self, selected: dict[str, Any]) -> TwoTowerNetwork:
        """The network that ships: trained on every sample, joined as was selected."""
        config = replace(
            self.config,
            hubness_power=selected["hub_power"],
            fusion=self.config.fusion if selected["fusion"] else None,
        )
        network = self._trained(FINAL, config, every_sample=True)
        with torch.no_grad():
            network.match_weights.copy_(torch.tensor(selected["evidence"]))
        return network

    def _trained(self, stage: str, config: TwoTowerConfig, every_sample: bool) -> TwoTowerNetwork:
        held_out: list[Pair] = []
        pace: list[Pace] = []

        def on_step(training: Training, losses: dict[str, float]) -> None:
            if not pace:  # the first step of this process: what comes before it is not timed
                pace.append(Pace(training.step))
                if not every_sample:
                    held_out.extend(self._held_out(stage))
            self._log_step(stage, training, losses, pace[0], held_out)

        return fit(
            self.paths,
            self.statistics,
            config,
            self.settings.train,
            every_sample=every_sample,
            expanded=self._expanded(stage),
            checkpoint=self.folder / _state(stage),
            device=self.device,
            on_step=on_step,
        )

    def _held_out(self, stage: str) -> list[Pair]:
        """At most MAX_GALLERY held-out pictures with captions that the stage expanded."""
        pairs = stream(self.paths, expanded=self._expanded(stage))
        return list(islice((pair for pair in pairs if pair.held_out), MAX_GALLERY))

    def _expanded(self, stage: str) -> Path:
        return self.folder / "expanded" / stage

    def _log_step(
        self,
        stage: str,
        training: Training,
        losses: dict[str, float],
        pace: Pace,
        held_out: list[Pair],
    ) -> None:
        """Log and report a step where it is due; held_out: empty where none is held out."""
        step, steps = training.step, self.settings.train.steps
        if step % LOG_EVERY and step != steps:
            return
        record = {"stage": stage, "step": step, **pace.at(step, steps)}
        record |= {name: round(loss, 4) for name, loss in losses.items()}
        if held_out:
            record["held_out_r1"] = round(training.held_out_r1(held_out), 4)
        append_log(self.folder, record)
        self.report(record)


def fit(
    paths: Sequence[Path],
    statistics: Statistics,
    config: TwoTowerConfig,
    settings: TrainSettings,
    *,
    every_sample: bool,
    expanded: Path,
    checkpoint: Path,
    device: torch.device,
    on_step: Callable[[Training, dict[str, float]], None] = lambda training, losses: None,
) -> TwoTowerNetwork:
    """Prepare, train and solve, each from where it was; -> the network, in evaluation mode.

    every_sample: on held-out samples, too; expanded: the folder of captions; checkpoint: of the
    training; on_step: called after each step with its losses.
    """
    prepared = prepare(
        config, paths, statistics, expanded, every_sample=every_sample, device=device
    )
    network = train(
        paths, prepared, settings, expanded=expanded, every_sample=every_sample,
        checkpoint=checkpoint, on_step=on_step,
    )  # fmt: skip
    solve(network, paths, statistics, expanded, every_sample=every_sample)
    return network


def _config(
    settings: TwoTowerSettings, statistics: Statistics, image: ImageTower, text: TextTower
) -> TwoTowerConfig:
    config = TwoTowerConfig(
        image=image.folder.name,
        image_fingerprint=image.fingerprint,
        text=text.folder.name,
        text_fingerprint=text.fingerprint,
        image_width=image.width,
        patch_width=image.token_width,
        text_width=text.width,
        word_width=text.token_width,
        # One dimension more than the text's own space, and what product quantisers cut evenly.
        dim=max(TwoTowerConfig.dim, 64 * math.ceil((text.width + 1) / 64)),
        fusion=settings.fusion,
    )
    return statistics.fill(config)


def _format_fusion(fusion: FusionConfig | None) -> str:
    """Its name and sizes: `gated, width 128, ...`."""
    if fusion is None:
        return "none"
    sizes = (f"{name} {value}" for name, value in asdict(fusion).items() if name != "fusion")
    return ", ".join((fusion.fusion, *sizes))


def _features(settings: TwoTowerSettings) -> FeatureSettings:
    return FeatureSettings(
        settings.read, settings.decode, settings.batch, tokens=settings.fusion is not None
    )


def _facts(
    settings: TwoTowerSettings, shards: Sequence[Shard], image: ImageTower, text: TextTower
) -> dict[str, Any]:
    """What the weights depend on, by its names in files."""
    return {
        "format": FORMAT,
        "held_out": SPLIT,
        "image_encoder": image.folder.name,
        "image_fingerprint": image.fingerprint,
        "text_encoder": text.folder.name,
        "text_fingerprint": text.fingerprint,
        "precision": image.precision,
        "device": image.device.type,
        "fusion": _format_fusion(settings.fusion),
        "learn": settings.train.to_json(),
        "read": asdict(settings.read),
        "decode": settings.decode.as_stored(),
        "shards": {shard.id: f"{shard.size} bytes, version {shard.version}" for shard in shards},
    }

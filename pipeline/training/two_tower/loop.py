"""Training on two frozen towers: shards in, a model folder out, in four steps.

    features of every shard, once     (features.py)
    prepare, learn and solve without the samples held out; judge: which mean, hubs shortened by how
        much? has the fusion earned its weights?
    prepare, learn and solve again from all of them, as chosen
    write the model, and report.json: every figure on samples that were not learned from, though
        the text's weight in the mean and the power of hubs were chosen by them

Killed and started again it goes on where it was: feature shards that are whole stay, and so does a
preparation that was finished; each learning has its checkpoint, and what was judged is not judged
again.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.model.checkpoint import write_whole
from chiasm.pipeline.model.config import FusionConfig
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.records import Shard
from chiasm.pipeline.shards import ReadSettings
from chiasm.pipeline.training.two_tower.closed_form import solve
from chiasm.pipeline.training.two_tower.features import compute, sweep
from chiasm.pipeline.training.two_tower.prepare import Statistics, prepare, survey
from chiasm.pipeline.training.two_tower.select import MOST_JUDGED, judge
from chiasm.pipeline.training.two_tower.stream import stream
from chiasm.pipeline.training.two_tower.trainer import LearnSettings, learn
from chiasm.pipeline.two_tower.checkpoint import FORMAT, save_two_tower
from chiasm.pipeline.two_tower.frozen import ImageTower, TextTower
from chiasm.pipeline.two_tower.network import TwoTowerConfig, TwoTowerNetwork

LEAST_PAIRS, LEAST_HELD = 20, 4
REPORT, JUDGED, SETTINGS = "report.json", "judged.json", "settings.json"


@dataclass(frozen=True)
class TwoTowerSettings:
    """What is trained on what. fusion None: the mean is all that is wanted."""

    image: str
    text: str
    fusion: FusionConfig | None = field(
        default_factory=lambda: FusionConfig(how="gated", width=128, depth=1, heads=2, slots=4)
    )
    learn: LearnSettings = field(default_factory=LearnSettings)
    read: ReadSettings = field(default_factory=ReadSettings)
    encoder: EncoderSettings = field(default_factory=EncoderSettings)


def train_two_tower(
    settings: TwoTowerSettings, shards: Sequence[Shard], folder: Path, told: Callable[[str], None]
) -> dict[str, Any]:
    """Train to the end, or go on with the training in `folder`; -> the report.

    UsageError where the folder is of other settings, or too few pairs are left to learn from.
    """
    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    image = ImageTower(settings.image, settings.encoder)
    text = TextTower(settings.text, settings.encoder)
    for each in (folder, *folder.glob("expanded/*")):
        sweep(each)
    computed = compute(shards, image, text, folder / "features", settings.read, told)
    cached = time.monotonic()
    survey_ = survey(computed.paths)
    config = _config(settings, survey_, image, text)
    _require_same(folder / SETTINGS, _identity(settings, config, computed.paths))
    run = _Run(settings, config, computed.paths, survey_, image.device, folder, told)
    judged = run.judged()
    network = run.final(judged)
    save_two_tower(folder, network)
    report = {
        "pairs": computed.pairs,
        "lost": computed.lost,
        "damaged": computed.damaged,
        **judged["figures"],
        "seconds_of_this_run": {
            "features": round(cached - started, 1),
            "learning": round(time.monotonic() - cached, 1),
        },
    }
    write_whole(folder / REPORT, (json.dumps(report, indent=2) + "\n").encode())
    return report


@dataclass(frozen=True)
class _Run:
    """The learning of one folder, after its features are there."""

    settings: TwoTowerSettings
    config: TwoTowerConfig
    paths: list[Path]
    survey: Statistics
    device: torch.device
    folder: Path
    told: Callable[[str], None]

    def judged(self) -> dict[str, Any]:
        """What the samples held out say: read, or found out now and written."""
        path = self.folder / JUDGED
        if path.exists():
            return json.loads(path.read_text())
        count = self.survey.pairs - self.survey.learnable
        if count < LEAST_HELD or self.survey.learnable < LEAST_PAIRS:
            raise UsageError(
                "SHARDS",
                expected=f"pairs to learn from, {LEAST_PAIRS} or more, and some to judge by",
                found=f"{self.survey.learnable} and {count}",
                do="give more shards",
            )
        network = self._learned("choosing", self.config, every_sample=False)
        pairs = stream(self.paths, expanded=self._expanded("choosing"))
        held = list(islice((pair for pair in pairs if pair.held_out), MOST_JUDGED))
        verdict = judge(network, held)
        told = {
            "text_weight": network.config.text_weight,
            "hub_power": network.config.hub_power,
            "fusion": verdict.fusion,
            "evidence": network.evidence.tolist(),
            "figures": verdict.figures,
        }
        self.told(json.dumps(verdict.figures))
        write_whole(path, json.dumps(told).encode())
        return told

    def final(self, judged: dict[str, Any]) -> TwoTowerNetwork:
        """The network that ships: learned from every sample, joined as was judged best."""
        fusion = self.config.fusion if judged["fusion"] else None
        config = replace(
            self.config,
            text_weight=judged["text_weight"],
            hub_power=judged["hub_power"],
            fusion=fusion,
        )
        network = self._learned("all-samples", config, every_sample=True)
        with torch.no_grad():
            network.evidence.copy_(torch.tensor(judged["evidence"]))
        return network

    def _learned(self, name: str, config: TwoTowerConfig, every_sample: bool) -> TwoTowerNetwork:
        return learned(
            self.paths,
            self.survey,
            config,
            self.settings.learn,
            every_sample=every_sample,
            expanded=self._expanded(name),
            checkpoint=self.folder / f"{name}.safetensors",
            device=self.device,
            told=lambda step, losses: self._step(name, step, losses),
        )

    def _expanded(self, name: str) -> Path:
        return self.folder / "expanded" / name

    def _step(self, name: str, step: int, losses: dict[str, float]) -> None:
        if step % 10 == 0 or step == self.settings.learn.steps:
            rounded = {kind: round(loss, 4) for kind, loss in losses.items()}
            line = json.dumps({"sitting": name, "step": step, **rounded})
            with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(line + "\n")
            self.told(line)


def learned(
    paths: Sequence[Path],
    survey_: Statistics,
    config: TwoTowerConfig,
    settings: LearnSettings,
    *,
    every_sample: bool,
    expanded: Path,
    checkpoint: Path,
    device: torch.device,
    told: Callable[[int, dict[str, float]], None] = lambda step, losses: None,
) -> TwoTowerNetwork:
    """Prepare, learn and solve, each from where it was; -> the network, in evaluation mode.

    every_sample: also from those held out; expanded: the folder of captions; checkpoint: of what
    is learned; told: of each step and its losses.
    """
    prepared = prepare(config, paths, survey_, expanded, every_sample=every_sample, device=device)
    network = learn(
        paths, prepared, settings, expanded=expanded, every_sample=every_sample,
        checkpoint=checkpoint, told=told,
    )  # fmt: skip
    solve(network, paths, survey_, expanded, every_sample=every_sample)
    return network


def _config(
    settings: TwoTowerSettings, survey_: Statistics, image: ImageTower, text: TextTower
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
    return survey_.fill(config)


def _identity(
    settings: TwoTowerSettings, config: TwoTowerConfig, paths: Sequence[Path]
) -> dict[str, Any]:
    """What must be as it was for a training to go on."""
    return {
        "format": FORMAT,
        "config": config.to_json(),
        "learn": asdict(settings.learn),
        "features": [path.name for path in paths],
    }


def _require_same(path: Path, identity: dict[str, Any]) -> None:
    told = json.loads(json.dumps(identity))
    if not path.exists():
        write_whole(path, (json.dumps(told, indent=2) + "\n").encode())
        return
    before = json.loads(path.read_text())
    changed = sorted(name for name in told if told[name] != before.get(name))
    if changed:
        raise UsageError(
            f"training in {path.parent}",
            expected="the shards, towers and settings it was started with",
            found="others: " + ", ".join(changed),
            do="give those, or another folder",
        )

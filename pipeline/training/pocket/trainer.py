"""A training at one moment: what is learned, from what, and how a step changes it.

In two stages, align before fuse (Li et al., ALBEF, 2021). First the towers learn: each step encodes
a batch's pictures once and two captions of each, and follows the mean InfoNCE of both plus what
probes tell (pipeline/training/pocket/objective.py). Then they stand still, at the exponential
moving average of their weights, and fusion and matching learn on top of them: what a picture and a
text are on their own is no longer touched, and a step costs no backward pass through the towers.
The weights that ship are the average, with matching calibrated.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call

from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.model.checkpoint import load_model, load_state, save_model, save_state
from chiasm.pipeline.model.config import ModelConfig
from chiasm.pipeline.model.inference import match_pairs
from chiasm.pipeline.model.joint import JointNetwork
from chiasm.pipeline.model.preprocess import to_pixels
from chiasm.pipeline.model.tokenizer import Tokenizer
from chiasm.pipeline.scenes.draw import picture
from chiasm.pipeline.training.distributed import average_gradients
from chiasm.pipeline.training.pocket.calibrate import fit_bias
from chiasm.pipeline.training.pocket.data import DataSettings, TrainBatch
from chiasm.pipeline.training.pocket.objective import Objective

STATE = "state.safetensors"
NEVER = 999_999_999  # a step that no training comes to: what it would draw is free for calibration
# Parameters of the objective that learn in the second stage, and only there.
OF_FUSION = (
    "model.fusion.", "model.matching.", "probes.pool.", "probes.discord.", "probes.ground.",
    "probes.heard.", "probes.telling.", "probes.log_sharpness",
)  # fmt: skip


@dataclass(frozen=True)
class TrainSettings:
    """How long, how fast, how far apart; the seed and the world's part are in `feed`.

    steps, fusion_steps: of the two stages; rate: the highest learning rate of either. Fusing goes
    by many small steps, of `fusion_batch` pictures: it stands still long before it compares, and
    then learns fast. facts: weight of the facts and readings losses at the start; it falls to a
    tenth along a cosine. words: weight of the words and lies losses; with less of words the twenty
    kinds stay out of the vectors, for neither tower can be first to put them there, and without
    lies the text tower forgets how things lie to each other. match: weight of all losses of fusion
    but the joint vector's, joint: of that. ema: decay of the average.
    corpus: scenes whose captions teach the tokenizer; calibrated: scenes by which matching's yes is
    set at the end (pipeline/training/pocket/calibrate.py). Picture side, context and vocabulary of
    `model` give way to those of the feed and of the tokenizer learned. Without `model.fusion` the
    run ends with the towers.
    """

    steps: int = 1600
    fusion_steps: int = 10_000
    fusion_batch: int = 32
    rate: float = 1e-3
    warmup: float = 0.03
    weight_decay: float = 0.05
    facts: float = 0.5
    words: float = 1.0
    match: float = 1.0
    joint: float = 0.5
    ema: float = 0.998
    clip: float = 1.0
    corpus: int = 6000
    calibrated: int = 1000
    log_every: int = 20
    checkpoint_every: int = 100
    evaluate_every: int = 200
    gallery_seed: int = 271828
    gallery: int = 1000
    feed: DataSettings = field(default_factory=DataSettings)
    model: ModelConfig = field(default_factory=ModelConfig)

    @property
    def all_steps(self) -> int:
        """Steps of both stages together."""
        return self.steps + (self.fusion_steps if self.model.fusion else 0)


class Training:
    """A model, its average and its optimiser at one moment of a run; `step` is the next to be
    done.
    """

    def __init__(self, settings: TrainSettings, device: torch.device, tokenizer: Tokenizer) -> None:
        self.settings, self.device, self.tokenizer = settings, device, tokenizer
        feed = settings.feed
        self.config = replace(
            settings.model,
            image=replace(settings.model.image, side=feed.side),
            text=replace(settings.model.text, vocabulary=len(tokenizer), context=feed.context),
        )
        torch.manual_seed(feed.seed)
        self.objective = Objective(self.config).to(device)
        model = self.objective.model
        self.average = {k: v.detach().clone() for k, v in model.state_dict().items()}
        self.step, self.seconds = 0, 0.0
        self.learned: list[nn.Parameter] = []
        self._begin_stage()

    def _begin_stage(self) -> None:
        """Choose what learns from `step` on, and an optimiser that knows nothing yet."""
        if self.fusing:
            self.objective.model.load_state_dict(self.average)
        for name, parameter in self.objective.named_parameters():
            parameter.requires_grad_(name.startswith(OF_FUSION) == self.fusing)
        # Matrices decay; biases, norms, queries, positions and the scale do not.
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in self.objective.named_parameters():
            if not parameter.requires_grad:
                continue
            matrix = parameter.ndim in (2, 4) and "embedding" not in name
            (matrices if matrix else others).append(parameter)
        self.learned = matrices + others
        groups = [
            {"params": matrices, "weight_decay": self.settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=self.settings.rate, betas=(0.9, 0.98))

    @property
    def fusing(self) -> bool:
        """Is this the second stage?"""
        return self.config.fusion is not None and self.step >= self.settings.steps

    @property
    def stage(self) -> tuple[int, int]:
        """Steps of the present stage that are done, and all of them."""
        steps, more = self.settings.steps, self.settings.fusion_steps
        return (self.step - steps, more) if self.fusing else (self.step, steps)

    @property
    def progress(self) -> float:
        """How far the stage has gone: 0 at the start, 1 at the end."""
        gone, steps = self.stage
        return min(1.0, gone / steps)

    @property
    def rate(self) -> float:
        """Linear warm-up, then a cosine down to a hundredth (Loshchilov and Hutter, SGDR, 2017)."""
        settings, gone = self.settings, self.progress
        if gone < settings.warmup:
            # In steps of at least one: the first update of a stage is not nothing.
            return settings.rate * max(
                gone / settings.warmup, 1 / (settings.warmup * self.stage[1] + 1)
            )
        along = (gone - settings.warmup) / (1 - settings.warmup)
        return settings.rate * (0.01 + 0.99 * (1 + math.cos(math.pi * along)) / 2)

    def learn(self, batch: TrainBatch, precision: torch.dtype) -> dict[str, float]:
        """One step: forward, backward, update, average. -> the losses, as logged."""
        settings = self.settings
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate
        # Weights are kept in float32 and rounded for each pass: autocast would go back to float32
        # at every norm, which costs a CPU time. A scalar is not worth rounding.
        rounded = {
            name: value.to(precision) if value.ndim else value
            for name, value in self.objective.named_parameters()
        }
        chance = torch.Generator().manual_seed(settings.feed.seed * 10**9 + self.step)
        losses = functional_call(self.objective, rounded, (batch, self.fusing, chance))
        self.optimiser.zero_grad(set_to_none=True)
        self._total(losses).backward()
        average_gradients(self.learned)
        norm = nn.utils.clip_grad_norm_(self.learned, settings.clip)
        self.optimiser.step()
        # The average follows fast at first: it must not carry the random start along.
        gone, _ = self.stage
        decay = min(settings.ema, (1 + gone) / (10 + gone))
        with torch.no_grad():
            for name, value in self.objective.model.named_parameters():
                if value.requires_grad:
                    self.average[name].lerp_(value, 1 - decay)
        fused = self.fusing
        self.step += 1
        if self.fusing != fused:
            self._begin_stage()
        return {name: loss.item() for name, loss in losses.items()} | {"norm": float(norm)}

    def _total(self, losses: dict[str, Tensor]) -> Tensor:
        """What a step goes down on: the weighted sum of the losses of its stage."""
        settings = self.settings
        if self.fusing:
            compared = sum(loss for name, loss in losses.items() if name != "joint")
            return settings.match * compared + settings.joint * losses["joint"]
        weight = settings.facts * (0.1 + 0.9 * (1 + math.cos(math.pi * self.progress)) / 2)
        probed = weight * (losses["facts"] + losses["readings"])
        return losses["contrast"] + probed + settings.words * (losses["words"] + losses["lies"])

    def calibrate(self) -> None:
        """Move the average's benefit of the doubt to where matching is best calibrated."""
        model = JointNetwork(self.config).to(self.device).eval()
        model.load_state_dict(self.average)
        side = self.config.image.side
        moved = fit_bias(
            lambda pixels, texts, pairs: match_pairs(model, self.tokenizer, pixels, texts, pairs),
            lambda scene: to_pixels(picture(scene), side),
            self.settings.calibrated,
            self.settings.feed.seed * 10**9 + NEVER,
        )
        self.average["matching.benefit"] += moved

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a step changes, by name."""
        moments = {
            f"optimiser.{i}.{name}": tensor
            for i, state in self.optimiser.state_dict()["state"].items()
            for name, tensor in state.items()
        }
        weights = {f"weights.{name}": t for name, t in self.objective.state_dict().items()}
        return weights | {f"average.{name}": t for name, t in self.average.items()} | moments

    def save(self, folder: Path) -> None:
        """Write the state, and the average as a model folder that an encoder can load."""
        facts = {"step": self.step, "seconds": self.seconds, "settings": asdict(self.settings)}
        folder.mkdir(parents=True, exist_ok=True)
        save_state(folder / STATE, self.tensors(), facts)
        save_model(folder, self.average, self.config, self.tokenizer)

    def take_towers(self, folder: Path) -> None:
        """Begin at the second stage, on the towers of a model folder; UsageError where they are not
        of these settings' shapes, or read texts in other tokens.
        """
        towers, tokenizer = load_model(folder)
        ours, theirs = self.config, towers.config
        of_towers = (ours.image, ours.text, ours.dim)
        if (theirs.image, theirs.text, theirs.dim) != of_towers or (
            tokenizer.to_json() != self.tokenizer.to_json()
        ):
            raise UsageError(
                f"--towers {folder}",
                expected="towers and tokens of this preset",
                found="others",
                do="train towers by this preset: --fusion-steps 0",
            )
        weights = towers.state_dict()
        with torch.no_grad():
            for name, value in self.average.items():
                if not name.startswith(("fusion.", "matching.")):
                    value.copy_(weights[name])
        self.step = self.settings.steps
        self._begin_stage()

    def resume(self, folder: Path) -> None:
        """Go on from the state in a folder; UsageError where its settings were others."""
        tensors, facts = load_state(folder / STATE)
        ours = json.loads(json.dumps(asdict(self.settings)))
        changed = sorted(k for k in ours if ours[k] != facts["settings"].get(k))
        if changed:
            raise UsageError(
                f"training in {folder}",
                expected="the settings it was started with",
                found="others for " + ", ".join(changed),
                do="give those, or another folder",
            )
        self.step, self.seconds = facts["step"], facts["seconds"]
        self.load(tensors)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take over the tensors of `tensors()`, as of `step`."""
        self._begin_stage()
        prefix = "weights."
        weights = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        self.objective.load_state_dict(weights)
        for name, value in self.average.items():
            value.copy_(tensors[f"average.{name}"])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimiser."):
                _, i, moment = name.split(".")
                moments.setdefault(int(i), {})[moment] = tensor
        state = self.optimiser.state_dict()
        self.optimiser.load_state_dict(state | {"state": moments})

"""A training at one moment: weights, their average and the optimiser, and how a step changes them.

Two stages, align before fuse (Li et al., ALBEF, 2021). First the towers are trained: a step encodes
a batch's pictures once and two captions of each; its loss is the mean InfoNCE of both plus those of
the probes (objective.py). Then the towers are frozen at the exponential moving average of their
weights, and fusion and matching are trained on top of them: the vectors of a picture or of a text
alone no longer change, and a step costs no backward pass through the towers. The weights that ship
are the average, with matching calibrated.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.model.checkpoint import (
    CONFIG_NAMES,
    TENSOR_NAMES,
    load_model,
    load_state,
    names_in_files,
    save_model,
    save_state,
    tensors_in_code,
    tensors_in_files,
)
from chiasm.pipeline.model.config import ModelConfig
from chiasm.pipeline.model.inference import match_pairs
from chiasm.pipeline.model.joint import JointNetwork
from chiasm.pipeline.model.preprocess import to_pixels
from chiasm.pipeline.model.tokenizer import Tokenizer
from chiasm.pipeline.scenes.draw import picture
from chiasm.pipeline.training.optim import (
    Ema,
    Optimiser,
    cosine,
    decay_groups,
    warmup_then_cosine,
    with_prefix,
    without_prefix,
)
from chiasm.pipeline.training.pocket.calibrate import calibration_bias
from chiasm.pipeline.training.pocket.data import DataSettings, TrainBatch
from chiasm.pipeline.training.pocket.objective import Objective

STATE = "state.safetensors"
CALIBRATION_STEP = 999_999_999  # a step that no training reaches: its scenes are for calibration
RATE_FLOOR = 0.01  # of the highest learning rate, at the end of a stage
PROBE_FLOOR = 0.1  # of the probes' weight, at the end of the first stage
# Parameters of the objective that are trained in the second stage, and only there.
OF_FUSION = (
    "model.fusion.", "model.matching.", "probes.pool.", "probes.pooled_disagreement.",
    "probes.patch_disagreement.", "probes.word_location.", "probes.word_weight.",
    "probes.log_scale",
)  # fmt: skip
# Name in code -> name in state.safetensors, as in model/checkpoint.py.
STATE_TENSOR_NAMES = {
    "probes.pooled_disagreement.": "probes.discord.",
    "probes.patch_disagreement.": "probes.ground.",
    "probes.word_location.out.": "probes.heard.answer.",
    "probes.word_location.": "probes.heard.",
    "probes.word_weight.": "probes.telling.",
    "probes.log_scale": "probes.log_sharpness",
    "probes.relations_of_vector.": "probes.lies_of_vector.",
    "probes.relations_of_tokens.out.": "probes.lies_of_tokens.answer.",
    "probes.relations_of_tokens.": "probes.lies_of_tokens.",
    **TENSOR_NAMES,
}
STATE_CONFIG_NAMES = {
    "learning_rate": "rate",
    "data": "feed",
    **{f"model.{path}": name for path, name in CONFIG_NAMES.items()},
}


@dataclass(frozen=True)
class TrainSettings:
    """Lengths, rates and weights of a training; the seed is that of `data`.

    steps, fusion_steps: of the two stages; learning_rate: the highest of either. The second stage
    takes many small steps, of `fusion_batch` pictures. facts: weight of the facts and readings
    losses at the start; it falls to a tenth along a cosine. words: weight of the words and
    relations losses; with less, the twenty kinds do not enter the vectors, and the text tower drops
    relations. match: weight of all losses of the second stage but the joint vector's, joint: of
    that. ema: decay of the average. corpus: scenes whose captions train the tokenizer; calibrated:
    scenes that calibrate matching at the end (calibrate.py). Picture side, context and vocabulary
    of `model` are replaced by those of `data` and of the trained tokenizer. Without `model.fusion`
    the run ends with the towers.
    """

    steps: int = 1600
    fusion_steps: int = 10_000
    fusion_batch: int = 32
    learning_rate: float = 1e-3
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
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelConfig = field(default_factory=ModelConfig)

    @property
    def all_steps(self) -> int:
        """Steps of both stages together."""
        return self.steps + (self.fusion_steps if self.model.fusion else 0)

    def to_json(self) -> dict[str, Any]:
        """Plain values by their names in files."""
        return json.loads(json.dumps(names_in_files(asdict(self), STATE_CONFIG_NAMES)))


class Training:
    """A model, its average and its optimiser at one moment of a run; `step`: steps done."""

    def __init__(self, settings: TrainSettings, device: torch.device, tokenizer: Tokenizer) -> None:
        self.settings, self.device, self.tokenizer = settings, device, tokenizer
        data = settings.data
        self.config = replace(
            settings.model,
            image=replace(settings.model.image, side=data.side),
            text=replace(settings.model.text, vocabulary=len(tokenizer), context=data.context),
        )
        torch.manual_seed(data.seed)
        self.objective = Objective(self.config).to(device)
        self.ema = Ema(self.objective.model.state_dict(), settings.ema)
        self.step, self.seconds = 0, 0.0
        self._begin_stage()

    def _begin_stage(self) -> None:
        """Choose the parameters to train from `step` on, and a new optimiser for them."""
        if self.fusing:
            self.objective.model.load_state_dict(self.ema.tensors)
        for name, parameter in self.objective.named_parameters():
            parameter.requires_grad_(name.startswith(OF_FUSION) == self.fusing)
        trained = [item for item in self.objective.named_parameters() if item[1].requires_grad]
        groups = decay_groups(trained, self.settings.weight_decay, _decays)
        groups.sort(key=lambda group: group.weight_decay, reverse=True)
        self.optimiser = Optimiser(groups, self.settings.learning_rate, self.settings.clip)

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
    def learning_rate_factor(self) -> float:
        """Of the highest learning rate: linear warm-up, then a cosine down to a hundredth."""
        done, steps = self.stage
        return warmup_then_cosine(done, steps, self.settings.warmup, RATE_FLOOR)

    def train_step(self, batch: TrainBatch, precision: torch.dtype) -> dict[str, float]:
        """One step: forward, backward, update, average. -> the losses, as logged."""
        losses = self.backward(batch, precision)
        return losses | {"norm": self.apply()}

    def backward(self, batch: TrainBatch, precision: torch.dtype) -> dict[str, float]:
        """The gradients of a batch, averaged over all processes. -> its losses."""
        # Weights are kept in float32 and rounded for each pass: autocast would go back to float32
        # at every norm, which costs a CPU time. A scalar is not worth rounding.
        rounded = {
            name: value.to(precision) if value.ndim else value
            for name, value in self.objective.named_parameters()
        }
        generator = torch.Generator().manual_seed(self.settings.data.seed * 10**9 + self.step)
        losses = functional_call(self.objective, rounded, (batch, self.fusing, generator))
        total = self._total(losses)
        self.optimiser.backward(total)
        return {name: loss.item() for name, loss in {"loss": total, **losses}.items()}

    def apply(self) -> float:
        """Update weights and average by the gradients, and go on to the next step or stage. -> the
        norm of the gradients."""
        norms = self.optimiser.apply({"": self.learning_rate_factor})
        trained = (
            (name, value)
            for name, value in self.objective.model.named_parameters()
            if value.requires_grad
        )
        self.ema.update(trained, updates=self.stage[0])
        was_fusing = self.fusing
        self.step += 1
        if self.fusing != was_fusing:
            self._begin_stage()
        return norms[""]

    def _total(self, losses: dict[str, Tensor]) -> Tensor:
        """The weighted sum of the losses of the stage."""
        settings = self.settings
        if self.fusing:
            compared = sum(loss for name, loss in losses.items() if name != "joint")
            return settings.match * compared + settings.joint * losses["joint"]
        done, steps = self.stage
        weight = settings.facts * cosine(min(1.0, done / steps), PROBE_FLOOR)
        probed = weight * (losses["facts"] + losses["readings"])
        return (
            losses["contrast"] + probed + settings.words * (losses["words"] + losses["relations"])
        )

    def calibrate(self) -> None:
        """Move the average's bias of matching to where matching is best calibrated."""
        model = JointNetwork(self.config).to(self.device).eval()
        model.load_state_dict(self.ema.tensors)
        side = self.config.image.side
        self.ema.tensors["matching.bias"] += calibration_bias(
            lambda pixels, texts, pairs: match_pairs(model, self.tokenizer, pixels, texts, pairs),
            lambda scene: to_pixels(picture(scene), side),
            self.settings.calibrated,
            self.settings.data.seed * 10**9 + CALIBRATION_STEP,
        )

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a step changes, by name."""
        return {
            **with_prefix(self.objective.state_dict(), "weights."),
            **with_prefix(self.ema.tensors, "average."),
            **with_prefix(self.optimiser.tensors(), "optimiser."),
        }

    def save(self, folder: Path) -> None:
        """Write the state, and the average as a model folder that an encoder can load."""
        facts = {"step": self.step, "seconds": self.seconds, "settings": self.settings.to_json()}
        tensors = tensors_in_files(self.tensors(), STATE_TENSOR_NAMES)
        save_state(folder / STATE, tensors, facts)
        save_model(folder, self.ema.tensors, self.config, self.tokenizer)

    def load_towers(self, folder: Path) -> None:
        """Begin at the second stage, on the towers of a model folder; UsageError where they are not
        of these settings' shapes, or have another tokenizer.
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
                do="give the train.corpus that they were trained with, or train towers anew: "
                "--fusion-steps 0",
            )
        weights = towers.state_dict()
        with torch.no_grad():
            for name, value in self.ema.tensors.items():
                if not name.startswith(("fusion.", "matching.")):
                    value.copy_(weights[name])
        self.step = self.settings.steps
        self._begin_stage()

    def resume(self, folder: Path) -> None:
        """Go on from the state in a folder; UsageError where its settings were others."""
        tensors, facts = load_state(folder / STATE)
        names = {saved: name for name, saved in STATE_CONFIG_NAMES.items()}
        changed = sorted(
            names.get(key, key)
            for key, value in self.settings.to_json().items()
            if value != facts["settings"].get(key)
        )
        if changed:
            raise UsageError(
                f"training in {folder}",
                expected="the settings it was started with",
                found="others for " + ", ".join(changed),
                do="give those, or another folder",
            )
        self.step, self.seconds = facts["step"], facts["seconds"]
        self.load(tensors_in_code(tensors, STATE_TENSOR_NAMES))

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take over the tensors of `tensors()`, as of `step`."""
        self._begin_stage()
        self.objective.load_state_dict(without_prefix(tensors, "weights."))
        self.ema.load(without_prefix(tensors, "average."))
        self.optimiser.load(without_prefix(tensors, "optimiser."))


def _decays(name: str, parameter: nn.Parameter) -> bool:
    """Matrices and convolutions decay; token embeddings, biases, norms, queries, positions and
    scales do not."""
    return parameter.ndim in (2, 4) and not name.endswith("text.embedding.weight")

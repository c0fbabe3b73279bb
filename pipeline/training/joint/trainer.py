"""A training at one moment: weights, their average and the optimiser, and how a step changes them.

A stage trains some of the parameters and leaves all others at the exponential moving average of the
stages before. The weights that ship are the average. Weights and steps are float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chiasm.pipeline.model.checkpoint import (
    SLOWER,
    load_state,
    require_finite_tensors,
    save_state,
)
from chiasm.pipeline.training.joint.objective import Network, Stage
from chiasm.pipeline.training.joint.settings import JointSettings
from chiasm.pipeline.training.optim import (
    Ema,
    Optimiser,
    decay_groups,
    matrix_decays,
    require_finite,
    warmup_then_cosine,
    with_prefix,
    without_prefix,
)

STATE = "state.safetensors"


class Training:
    """`step`: steps done, of all stages. figures: of `evaluate.select`, once it was done."""

    def __init__(self, network: Network, stages: Sequence[Stage], settings: JointSettings) -> None:
        self.network, self.stages, self.settings = network, list(stages), settings
        self.ends = list(accumulate(stage.steps for stage in stages))
        self.ema = Ema(network.state_dict(), settings.ema)
        self.step, self.seconds = 0, 0.0
        self.figures: dict[str, Any] | None = None
        self.begin_stage()

    @property
    def number(self) -> int:
        """Of the stage of the next step; after the last step, of the last stage."""
        return next((i for i, end in enumerate(self.ends) if self.step < end), len(self.ends) - 1)

    @property
    def stage(self) -> Stage:
        """The stage of the next step."""
        return self.stages[self.number]

    @property
    def stage_step(self) -> int:
        """Steps of the present stage that are done."""
        return self.step - (self.ends[self.number] - self.stage.steps)

    @property
    def device(self) -> torch.device:
        """Where it is trained."""
        return self.network.log_scale.device

    def begin_stage(self) -> None:
        """All weights to the average; the stage's parameters, and a new optimiser for them."""
        self.network.load_state_dict(self.ema.tensors)
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(name.startswith(self.stage.trained))
        self.trained = {k: v for k, v in self.network.named_parameters() if v.requires_grad}
        groups = decay_groups(self.trained.items(), self.settings.weight_decay, matrix_decays)
        self.optimiser = Optimiser(groups, self.settings.learning_rate, self.settings.clip)

    def train_step(self, batch: Any) -> dict[str, float]:
        """One step on a batch of the stage; -> its losses, `loss` being their sum. ChiasmError
        where one or a gradient is not finite: nothing is updated."""
        what = f"step {self.step + 1} of the training, of stage {self.stage.name}"
        seed = self.settings.seed * 10**9 + self.step
        torch.manual_seed(seed)  # of dropout, so that a resumed training draws the same
        generator = torch.Generator().manual_seed(seed)
        losses = self.stage.losses(self.network, _moved(batch, self.device), generator)
        total = torch.stack(list(losses.values())).sum()
        self.optimiser.backward(total)
        found = {name: loss.item() for name, loss in {"loss": total, **losses}.items()}
        require_finite(found, what)
        rate = warmup_then_cosine(self.stage_step, self.stage.steps, self.settings.warmup)
        self.optimiser.apply({"": rate}, what)
        self.network.limit_scale()
        self.ema.update(self.trained.items(), updates=self.stage_step)
        before = self.number
        self.step += 1
        if self.number != before:
            self.begin_stage()
        return found

    def take_average(self, network: Network) -> None:
        """Take over what was changed in `average()`."""
        self.ema.load(network.state_dict())
        if self.stage_step == 0:  # a stage begins at the average
            self.begin_stage()

    def average(self, network: Network) -> Network:
        """The averaged weights in a network of the same kind, in evaluation mode."""
        network.load_state_dict(self.ema.tensors)
        return network.to(self.device).eval()

    def save(self, folder: Path) -> None:
        """Write everything that a step changes. ChiasmError where a tensor is not finite: nothing
        is written."""
        tensors = {
            **with_prefix(self.network.state_dict(), "weights."),
            **with_prefix(self.ema.tensors, "average."),
            **with_prefix(self.optimiser.tensors(), "optimiser."),
        }
        require_finite_tensors(
            tensors,
            f"state of a training after step {self.step}",
            f"the last checkpoint is as it was: {SLOWER}",
        )
        facts = {"step": self.step, "seconds": self.seconds, "figures": self.figures}
        save_state(folder / STATE, tensors, facts)

    def resume(self, folder: Path) -> None:
        """Go on from what `save` wrote, if it has."""
        if not (folder / STATE).exists():
            return
        tensors, facts = load_state(folder / STATE)
        self.step, self.seconds = facts["step"], facts["seconds"]
        self.figures = facts["figures"]
        self.begin_stage()
        self.network.load_state_dict(without_prefix(tensors, "weights."))
        self.ema.load(without_prefix(tensors, "average."))
        self.optimiser.load(without_prefix(tensors, "optimiser."))


def _moved(batch: Any, device: torch.device) -> Any:
    """A batch with its tensors on a device; arrays stay as they are."""
    if not is_dataclass(batch) or isinstance(batch, type):
        return batch
    items = {item.name: getattr(batch, item.name) for item in fields(batch)}
    tensors = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in items.items()}
    return type(batch)(**tensors)

"""What all trainings share: parameter groups, schedules, EMA, AdamW's state as tensors, and a step
in two halves, `Optimiser.backward` and `Optimiser.apply`.

A training keeps one `Optimiser` a stage. Its tensors go into the training's checkpoint by name, so
that a resumed training has the same weights, bit by bit, as one that was never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from chiasm.pipeline.errors import ChiasmError
from chiasm.pipeline.model.checkpoint import SLOWER
from chiasm.pipeline.training.distributed import average_gradients

BETAS = (0.9, 0.98)  # of AdamW: the second is short, for trainings of some thousand steps
RATE_FLOOR = 0.01  # of the highest learning rate, at the end of a stage, or of a cycle of one


def require_finite(values: Mapping[str, float], what: str, do: str = SLOWER) -> None:
    """ChiasmError about `what`, with what to do, where a loss or the norm of gradients is not
    finite. values: by name."""
    wrong = [f"{name} {value}" for name, value in values.items() if not math.isfinite(value)]
    if wrong:
        raise ChiasmError(
            what, expected="finite losses and gradients", found=", ".join(wrong), do=do
        )


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters with one weight decay. name: parameters of groups with one name are clipped
    together and have one learning rate."""

    name: str
    parameters: list[nn.Parameter]
    weight_decay: float


def decay_groups(
    named: Iterable[tuple[str, nn.Parameter]],
    weight_decay: float,
    decays: Callable[[str, nn.Parameter], bool],
    group: Callable[[str], str] = lambda name: "",
) -> list[ParameterGroup]:
    """Parameters by group name and weight decay; groups and parameters in the order in which they
    occur in `named`. decays: does this parameter decay? group: parameter name -> group name."""
    found: dict[tuple[str, float], list[nn.Parameter]] = {}
    for name, parameter in named:
        decay = weight_decay if decays(name, parameter) else 0.0
        found.setdefault((group(name), decay), []).append(parameter)
    return [ParameterGroup(name, parameters, decay) for (name, decay), parameters in found.items()]


def matrix_decays(name: str, parameter: nn.Parameter) -> bool:
    """Matrices and convolutions decay; embeddings of tokens, prefixes and modalities, biases,
    norms, queries, positions and scales do not."""
    return parameter.ndim in (2, 4) and "embedding" not in name


def cosine(progress: float, floor: float = 0.0) -> float:
    """From 1 at progress 0 to `floor` at progress 1 along half a cosine (Loshchilov and Hutter,
    SGDR, 2017)."""
    return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2


def warmup_then_cosine(step: int, steps: int, warmup: float, floor: float = RATE_FLOOR) -> float:
    """Factor of the learning rate at `step`, from 0 up, of `steps`: linear warm-up over a share
    `warmup` of the steps, then a cosine down to `floor`. The first step is never 0."""
    progress = min(1.0, step / steps)
    if progress < warmup:
        return max(progress / warmup, 1 / (warmup * steps + 1))
    return cosine((progress - warmup) / (1 - warmup), floor)


def warmup_times_cosine(step: int, steps: int, warmup_steps: int) -> float:
    """Factor of the learning rate at `step`, from 0 up, of `steps`: a cosine down to 0 over all of
    them, times a linear warm-up over the first `warmup_steps`."""
    return min(1.0, (step + 1) / warmup_steps) * cosine(step / max(1, steps))


class Ema:
    """Exponential moving average of named tensors: a_n = d a_{n-1} + (1 - d) w_n.

    d = min(decay, (1 + n) / (10 + n)), n updates before this one: short at first, so that the
    average forgets the initial weights.
    """

    def __init__(self, tensors: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}

    @torch.no_grad()
    def update(self, tensors: Iterable[tuple[str, Tensor]], updates: int) -> None:
        """Move towards the present tensors, of those names alone. updates: n above."""
        decay = min(self.decay, (1 + updates) / (10 + updates))
        for name, tensor in tensors:
            self.tensors[name].lerp_(tensor, 1 - decay)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over tensors of the same names, in place; KeyError for a missing one."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])


class Optimiser:
    """AdamW over parameter groups, with gradients averaged over all processes and clipped."""

    def __init__(self, groups: Sequence[ParameterGroup], learning_rate: float, clip: float) -> None:
        self.groups, self.learning_rate, self.clip = list(groups), learning_rate, clip
        self.parameters = [item for group in self.groups for item in group.parameters]
        self._adamw = torch.optim.AdamW(
            [{"params": g.parameters, "weight_decay": g.weight_decay} for g in self.groups],
            lr=learning_rate,
            betas=BETAS,
        )

    def backward(self, loss: Tensor) -> None:
        """Gradients of a scalar loss, averaged over all processes that train together."""
        self._adamw.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(self.parameters)

    def apply(
        self, factors: Mapping[str, float], what: str = "a training step", do: str = SLOWER
    ) -> dict[str, float]:
        """Clip the gradients of each group name by themselves and update the parameters; factors:
        of the learning rate, by group name. -> the gradients' norm before clipping, by group name.
        ChiasmError about `what`, with what to do, where a norm is not finite: nothing is updated.
        """
        norms: dict[str, float] = {}
        for name in dict.fromkeys(group.name for group in self.groups):
            of_name = [item for g in self.groups if g.name == name for item in g.parameters]
            norms[name] = float(nn.utils.clip_grad_norm_(of_name, self.clip))
        require_finite({f"norm {name}".strip(): norm for name, norm in norms.items()}, what, do)
        for options, group in zip(self._adamw.param_groups, self.groups, strict=True):
            options["lr"] = self.learning_rate * factors[group.name]
        self._adamw.step()
        return norms

    def tensors(self) -> dict[str, Tensor]:
        """AdamW's state: `<i>.<name>` of parameter i in the order of `parameters`; none before the
        first step."""
        state = self._adamw.state_dict()["state"]
        return {
            f"{i}.{name}": tensor
            for i, moments in state.items()
            for name, tensor in moments.items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` gave."""
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            i, name = key.split(".")
            state.setdefault(int(i), {})[name] = tensor
        self._adamw.load_state_dict(self._adamw.state_dict() | {"state": state})


def with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors under names that begin with `prefix`."""
    return {prefix + name: tensor for name, tensor in tensors.items()}


def without_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those tensors whose names begin with `prefix`, under the rest of their names."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

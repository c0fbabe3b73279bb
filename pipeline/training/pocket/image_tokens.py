"""A recipe for image tokens: drawn pictures in, an encoder and a decoder of codes out.

The loss is of pixels and of edges: squared errors use the codes best, absolute errors of
differences keep outlines and patterns sharp, which are thin, and which the facts of a scene lie in.
The batches are pieces of pictures around a thing. The network sees a code's neighbourhood alone,
so that what it learns of pieces is true of whole pictures, and most of a picture is background,
which is learned soon. No caption and no other model take part, so what draws never learns from what
will judge it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from chiasm.pipeline.model.image_tokens import ImageTokens, ImageTokensConfig, to_unit
from chiasm.pipeline.model.preprocess import to_pixels
from chiasm.pipeline.scenes.draw import CENTRES, picture
from chiasm.pipeline.training.optim import (
    Ema,
    Optimiser,
    decay_groups,
    warmup_then_cosine,
    with_prefix,
    without_prefix,
)
from chiasm.pipeline.training.pocket.data import DataSettings, scenes_of

RATE_FLOOR = 0.01  # of the highest learning rate, at the end


@dataclass(frozen=True)
class ImageTokensSettings:
    """Length, rates and weights of a training; the seed is that of `data`.

    learning_rate: the highest. pixels, edges: weights of the losses. piece: codes in a row of the
    piece of a picture that is shown. ema: decay of the average. The side of `model` is replaced by
    that of `data`.
    """

    steps: int = 16_000
    learning_rate: float = 3e-3
    warmup: float = 0.02
    weight_decay: float = 0.01
    pixels: float = 4.0
    edges: float = 0.5
    piece: int = 5
    ema: float = 0.998
    clip: float = 1.0
    data: DataSettings = field(default_factory=lambda: DataSettings(batch=16))
    model: ImageTokensConfig = field(default_factory=ImageTokensConfig)


@dataclass(frozen=True)
class PictureBatch:
    """A process's rows of a batch: pixels uint8 (B, 3, P, P), pieces of pictures."""

    pixels: np.ndarray


def draw_pieces(
    step: int, settings: ImageTokensSettings, rank: int = 0, world_size: int = 1
) -> PictureBatch:
    """A process's rows of the batch of a step: the same for the same arguments, wherever they are
    drawn. All processes together have the rows that one alone has of a batch as large. A row is a
    piece of `settings.piece` codes in a row with one of its picture's things in it.
    """
    data, side, stride = settings.data, settings.data.side, settings.model.stride
    scenes = scenes_of(step, replace(data, batch=data.batch * world_size))
    rng = random.Random(f"pieces {data.seed} {step}")
    centres = [rng.choice(scene.things) for scene in scenes]
    last = side // stride - settings.piece  # the first code of a piece, at most
    rows = []
    for number in range(rank * data.batch, (rank + 1) * data.batch):
        thing, pixels = centres[number], to_pixels(picture(scenes[number]), side)
        top, left = (
            max(0, min(last, round(CENTRES[i] * side / stride - settings.piece / 2))) * stride
            for i in (thing.row, thing.column)
        )
        size = settings.piece * stride
        rows.append(pixels[:, top : top + size, left : left + size])
    return PictureBatch(np.stack(rows))


def picture_losses(drawn: Tensor, pixels: Tensor) -> dict[str, Tensor]:
    """float32 scalars, `pixels`: mean square error, and `edges`: mean absolute error of the
    differences of neighbours in a row, plus that in a column.

    drawn: (B, 3, P, P), as `ImageTokens.draw` gives; pixels: uint8, of its shape.
    """
    error = drawn - to_unit(pixels)
    return {
        "pixels": error.square().mean(),
        "edges": error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean(),
    }


class ImageTokensObjective(nn.Module):
    """The model and the losses of a batch."""

    def __init__(self, config: ImageTokensConfig) -> None:
        super().__init__()
        self.model = ImageTokens(config)

    def forward(self, batch: PictureBatch) -> dict[str, Tensor]:
        """-> the losses of `picture_losses`."""
        pixels = torch.from_numpy(batch.pixels).to(next(self.parameters()).device)
        return picture_losses(self.model(pixels), pixels)


class ImageTokensTraining:
    """A model, its average and its optimiser at one moment; `step`: steps done."""

    def __init__(self, settings: ImageTokensSettings, device: torch.device) -> None:
        self.settings, self.device, self.step = settings, device, 0
        torch.manual_seed(settings.data.seed)
        config = replace(settings.model, side=settings.data.side)
        self.objective = ImageTokensObjective(config).to(device)
        self.ema = Ema(self.objective.model.state_dict(), settings.ema)
        named = self.objective.named_parameters()
        groups = decay_groups(named, settings.weight_decay, lambda _, item: item.ndim == 4)
        self.optimiser = Optimiser(groups, settings.learning_rate, settings.clip)

    def train_step(self, batch: PictureBatch) -> dict[str, float]:
        """One step: forward, backward, update, average. -> the losses and the gradients' norm."""
        settings = self.settings
        losses = self.objective(batch)
        total = settings.pixels * losses["pixels"] + settings.edges * losses["edges"]
        self.optimiser.backward(total)
        factor = warmup_then_cosine(self.step, settings.steps, settings.warmup, RATE_FLOOR)
        norms = self.optimiser.apply({"": factor})
        self.ema.update(self.objective.model.named_parameters(), updates=self.step)
        self.step += 1
        found = {name: loss.item() for name, loss in {"loss": total, **losses}.items()}
        return found | {"norm": norms[""]}

    def averaged(self) -> ImageTokens:
        """A copy of the model with the averaged weights, for use."""
        model = ImageTokens(self.objective.model.config).to(self.device).eval()
        model.load_state_dict(self.ema.tensors)
        return model

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a step changes, by name."""
        return {
            **with_prefix(self.objective.state_dict(), "weights."),
            **with_prefix(self.ema.tensors, "average."),
            **with_prefix(self.optimiser.tensors(), "optimiser."),
        }

    def load(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Take over the tensors of `tensors()`, as of `step`."""
        self.step = step
        self.objective.load_state_dict(without_prefix(tensors, "weights."))
        self.ema.load(without_prefix(tensors, "average."))
        self.optimiser.load(without_prefix(tensors, "optimiser."))


def train_image_tokens(
    training: ImageTokensTraining, last: int | None = None
) -> Iterator[dict[str, float]]:
    """Train on from the step that the training is at, to its end or to step `last`; gives the
    losses of each step."""
    settings = training.settings
    for step in range(training.step, settings.steps if last is None else last):
        yield training.train_step(draw_pieces(step, settings))

"""What image tokens learn from: pieces of drawn pictures, and how far pixels are from them.

The loss is of pixels and of edges: squared errors use the codes best, absolute errors of
differences keep outlines and patterns sharp, which are thin, and which the facts of a scene lie in.
What the frozen image tower's convolutions see is to be the same as well (Johnson et al., Perceptual
Losses for Real-Time Style Transfer, 2016): they have learned which patterns matter. What will judge
the pictures is to be another tower. The batches are pieces of pictures around a thing: the network
sees a code's neighbourhood alone, so that what it learns of pieces is true of whole pictures, and
most of a picture is background, which is learned soon. Drawing a picture takes longer than a step
with one piece of it, so that a batch has several of each.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from chiasm.pipeline.model.config import STRIDE
from chiasm.pipeline.model.image_tokens import to_unit
from chiasm.pipeline.model.preprocess import to_pixels
from chiasm.pipeline.model.tokenizer import Tokenizer
from chiasm.pipeline.model.towers import ImageTower
from chiasm.pipeline.scenes.draw import CENTRES, picture
from chiasm.pipeline.training.pocket.data import DataSettings, scenes_of


@dataclass(frozen=True)
class PieceSettings:
    """scenes: how they are drawn, `batch` of them a step in each process. stride: pixels of a code;
    piece: codes in a row of a piece, all of a picture's where it has fewer; pieces: of a picture.
    """

    scenes: DataSettings
    stride: int
    piece: int = 5
    pieces: int = 4


@dataclass(frozen=True)
class PictureBatch:
    """A process's rows of a batch: pixels uint8 (B, 3, P, P), pieces of pictures."""

    pixels: np.ndarray


def piece_batch(
    step: int,
    settings: PieceSettings,
    tokenizer: Tokenizer | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> PictureBatch:
    """A process's rows of the batch of a step: the same for the same arguments, wherever they are
    drawn. All processes together have the rows that one alone has of a batch as large. A row is a
    piece of a picture with one of its things in it. Nothing is read of the tokenizer, which the
    batches of every stage are given.
    """
    data, stride = settings.scenes, settings.stride
    columns = data.side // stride
    piece = min(settings.piece, columns)
    scenes = scenes_of(step, replace(data, batch=data.batch * world_size))
    rows = []
    for number in range(rank * data.batch, (rank + 1) * data.batch):
        rng = random.Random(f"pieces {data.seed} {step} {number}")
        pixels = to_pixels(picture(scenes[number]), data.side)
        for _ in range(settings.pieces):
            thing = rng.choice(scenes[number].things)
            rows_of, columns_of = (
                _codes(CENTRES[i] * columns + rng.choice((-1, 0, 1)), piece, columns, stride)
                for i in (thing.row, thing.column)
            )
            rows.append(pixels[:, rows_of, columns_of])
    return PictureBatch(np.stack(rows))


def _codes(middle: float, piece: int, columns: int, stride: int) -> slice:
    """The pixels of `piece` codes of `columns` around a middle, in codes."""
    first = max(0, min(columns - piece, round(middle - piece / 2)))
    return slice(first * stride, (first + piece) * stride)


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


def feature_loss(tower: ImageTower, drawn: Tensor, pixels: Tensor) -> Tensor:
    """float32 scalar: mean square error of the features of the tower's convolutions, the second and
    the last, each by the variance of those of the true pictures, summed.

    drawn, pixels: as in `picture_losses`; what is a multiple of the tower's stride is seen.
    """
    seen = drawn.shape[-1] // STRIDE * STRIDE
    with torch.no_grad():
        true = _features(tower, to_unit(pixels[..., :seen, :seen]))
    found = _features(tower, drawn[..., :seen, :seen])
    errors = [
        (one.float() - other.float()).square().mean() / other.float().var()
        for one, other in zip(found, true, strict=True)
    ]
    return torch.stack(errors).sum()


def _features(tower: ImageTower, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """pixels (B, 3, P, P), -1 to 1 -> after the second convolution, and after the last."""
    *first, last = tower.stem
    x = pixels.to(tower.position.dtype)
    for layer in first:
        x = layer(x)
    return x, last(x)

"""Image processors whose pictures are squeezed to a square and then cropped, and one that
transformers has for torchvision alone."""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling

from chiasm.pipeline.pretrained.image_processing import Scale, SquareProcessing, require_size
from chiasm.pipeline.resizing import Picture


class Tipsv2Pixels(PilBackend):
    """The steps and defaults of transformers' Tipsv2ImageProcessor, on Pillow."""

    resample = PILImageResampling.BILINEAR
    size = {"height": 448, "width": 448}  # noqa: RUF012  as the classes of transformers have it
    do_resize = True
    do_rescale = True
    do_normalize = False
    do_convert_rgb = True


@dataclass(frozen=True)
class CroppedProcessing:
    """The central `crop` x `crop` of pictures that `whole` squeezes to a larger square (ALIGN)."""

    whole: SquareProcessing
    crop: int

    @property
    def side(self) -> int:
        """Before the crop: what decoding must leave."""
        return self.whole.side

    def preprocess(self, picture: Picture) -> np.ndarray:
        """As SquareProcessing -> uint8 (3, crop, crop)."""
        edge = (self.side - self.crop) // 2
        middle = slice(edge, edge + self.crop)
        return np.ascontiguousarray(self.whole.preprocess(picture)[:, middle, middle])

    def inputs(
        self, pixels: Sequence[np.ndarray], device: torch.device, dtype: torch.dtype
    ) -> dict[str, torch.Tensor]:
        """As ImageProcessing."""
        return self.whole.inputs(pixels, device, dtype)

    def describe(self) -> dict[str, Any]:
        """As ImageProcessing."""
        return {**self.whole.describe(), "crop": [self.crop, self.crop]}

    def covered(self, width: int, height: int) -> tuple[float, float, float, float]:
        """As ImageProcessing."""
        first = (self.side - self.crop) // 2 / self.side
        last = first + self.crop / self.side
        return first, first, last, last


def square_processing(
    processor: Any, vision: Any, what: str
) -> SquareProcessing | CroppedProcessing:
    """The processing of a model of fixed resolution, from its image processor and its vision
    config; None for one that takes any size. Raises EncoderError as SquareProcessing.of."""
    crop = _side(processor.crop_size) if processor.do_center_crop else None
    squeezed = _side(processor.size)
    if crop is None or squeezed is None or crop > squeezed:
        made = SquareProcessing.of(processor, vision, what)
        return replace(made, scale=_scale(processor))
    require_size(crop, vision, what)
    alone = copy.copy(processor)
    alone.do_center_crop = False
    whole = replace(SquareProcessing.of(alone, None, what), scale=_scale(processor))
    return whole if crop == squeezed else CroppedProcessing(whole, crop)


def _scale(processor: Any) -> Scale:
    """As Scale.of, with the two steps that EfficientNet's image processor has more: 1 is taken off
    after rescaling, and what was normalised is divided by the deviation once again."""
    scale = Scale.of(processor)
    if getattr(processor, "rescale_offset", False) and processor.do_rescale:
        scale = replace(scale, mean=tuple(value + 1 for value in scale.mean))
    if getattr(processor, "include_top", False):
        scale = replace(scale, std=tuple(map(operator.mul, scale.std, processor.image_std)))
    return scale


def _side(size: Any) -> int | None:
    """The side of a square, None for another shape."""
    return size.height if size is not None and size.height == size.width else None

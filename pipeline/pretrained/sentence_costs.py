"""What the forward pass of a picture takes, by what a model's processor makes of pictures.

A vision-language model makes more patches and tokens of a larger picture, up to its own limit. How
many is found by trial, for a small picture and for the largest; between them it grows with the
number of pixels. A patch then takes, in the widest moment of a layer, its residual stream, its
query, key and value, what attention gives, and the inside of the feed-forward block. The peak that
the vision tower of CLIP B/16 has in float32 on a CPU is 1.1 times what this says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from chiasm.pipeline.pretrained.sentence_models import MAX_PIXELS

SMALL = (64, 64)  # width and height
STREAMS = 6  # vectors of the model's width at once: residual, its norm, query, key, value, attended
GATES = 2  # of a feed-forward block: what is gated, and the gate
# The first that there is: a tower with an `embed_dim` calls the width of what it gives hidden_size.
WIDTHS = ("embed_dim", "hidden_size", "d_model", "width")
DEFAULT_WIDTH = 1024  # of a tower whose configuration has other names for it
DEFAULT_PATCH = 16


@dataclass(frozen=True)
class PictureCost:
    """Bytes of a picture by its pixels: those of `small` pixels, and more a pixel up to `large`."""

    small: int
    large: int
    fewest: int = SMALL[0] * SMALL[1]

    def __call__(self, pixels: int) -> int:
        share = (pixels - self.fewest) / (MAX_PIXELS - self.fewest)
        return int(self.small + (self.large - self.small) * min(1.0, max(0.0, share)))


def picture_cost(
    preprocess: Callable[[Image.Image], Mapping[str, Any]], config: Any, dtype: torch.dtype
) -> PictureCost:
    """The cost of pictures. preprocess: of the model, one picture -> its input tensors. config: of
    transformers. dtype: of the weights."""
    side = int(MAX_PIXELS**0.5)
    small, large = (
        _bytes(preprocess(Image.new("RGB", size)), config, dtype.itemsize)
        for size in (SMALL, (side, side))
    )
    return PictureCost(small, large)


def _bytes(inputs: Mapping[str, Any], config: Any, itemsize: int) -> int:
    """Of the inputs themselves, of the patches in the tower of pictures, and of the tokens in that
    of texts: at a time only one of the towers is at work."""
    tensors = [value for value in inputs.values() if isinstance(value, torch.Tensor)]
    own = sum(tensor.nbytes for tensor in tensors)
    vision = getattr(config, "vision_config", config)
    patch = getattr(vision, "patch_size", None)
    patch = patch if isinstance(patch, int) else DEFAULT_PATCH
    pixels = inputs.get("pixel_values")
    volume = 3 * patch * patch * getattr(vision, "temporal_patch_size", 1)
    patches = 0 if pixels is None else -(-pixels.numel() // volume)
    ids = inputs.get("input_ids")
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    tokens = 0 if ids is None else ids.numel()
    return own + itemsize * max(patches * _numbers(vision), tokens * _numbers(text))


def _numbers(config: Any) -> int:
    """How many numbers a layer holds of one patch or token."""
    found = (getattr(config, name, None) for name in WIDTHS)
    width = next((value for value in found if isinstance(value, int)), DEFAULT_WIDTH)
    inner = getattr(config, "intermediate_size", None)
    inner = inner if isinstance(inner, int) else 4 * width
    return STREAMS * width + GATES * inner

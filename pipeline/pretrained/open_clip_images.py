"""open_clip's preprocessing of pictures, in two steps with the same result.

The steps are those of open_clip's `image_transform` for evaluation: resized in one of three ways,
cropped or padded in the middle, scaled to 0..1 and normalised. Resizing and cropping are Pillow's,
as torchvision does them of Pillow's pictures, and run in the decode threads, to uint8; the rest
runs on the whole batch on the model's device. torchvision is not needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from chiasm.pipeline.errors import EncoderError
from chiasm.pipeline.pretrained.image_processing import Scale
from chiasm.pipeline.resizing import resize

SHORTEST, SQUASH, LONGEST = "shortest", "squash", "longest"
RESIZES = (SHORTEST, SQUASH, LONGEST)
# `random` is a setting for training: open_clip evaluates such a model by bicubic.
INTERPOLATIONS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "random": Image.Resampling.BICUBIC,
}
# open_clip's defaults, where a configuration says nothing: those of OpenAI's CLIP.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
SIDE = 224


@dataclass(frozen=True)
class OpenClipImages:
    """Pictures -> pixels of one size.

    height, width: of what the model sees. resize: `shortest`: the side that is relatively shorter
    fills it, and the middle is cut out; `squash`: both sides do, whatever the shape; `longest`: the
    whole picture is in it, on `fill`, a colour of 0 to 255 by channel."""

    height: int
    width: int
    resize: str
    resample: Image.Resampling
    fill: tuple[int, ...]
    scale: Scale

    @classmethod
    def of(
        cls, preprocess: Mapping[str, Any], size: int | Sequence[int], title: str
    ) -> OpenClipImages:
        """From a `preprocess_cfg` of open_clip, where null means the default, and the `image_size`
        of the model; EncoderError for values that open_clip does not have."""
        given = {name: value for name, value in preprocess.items() if value is not None}
        resize = given.get("resize_mode") or SHORTEST
        interpolation = given.get("interpolation") or "bicubic"
        _require(title, "mode", given.get("mode", "RGB"), ("RGB",))
        _require(title, "resize_mode", resize, RESIZES)
        _require(title, "interpolation", interpolation, tuple(INTERPOLATIONS))
        height, width = _pair(size, title)
        resample = INTERPOLATIONS[interpolation]
        if resize == SHORTEST and height != width:
            resample = Image.Resampling.BICUBIC  # open_clip passes no other on for such a shape
        channels = _numbers(given, "mean", MEAN, title), _numbers(given, "std", STD, title)
        if not all(channels[1]):
            raise EncoderError(title, expected="a std above 0 in its preprocess_cfg", found="0")
        fill = tuple(int(value) for value in _numbers(given, "fill_color", (0, 0, 0), title))
        return cls(height, width, resize, resample, fill, Scale(1 / 255, *channels))

    @property
    def side(self) -> int:
        """The shorter side in pixels."""
        return min(self.height, self.width)

    def preprocess(self, pixels: np.ndarray) -> np.ndarray:
        """One RGB picture, uint8 of any size (h, w, 3) -> uint8 (3, H, W)."""
        height, width, _ = pixels.shape
        size = self._resized(width, height)
        if size != (width, height):
            pixels = resize(pixels, size, self.resample)
        return np.ascontiguousarray(self._middle(pixels).transpose(2, 0, 1))

    def inputs(
        self, pixels: Sequence[np.ndarray], device: torch.device, dtype: torch.dtype
    ) -> torch.Tensor:
        """B outputs of `preprocess` -> (B, 3, H, W) on the device, normalised."""
        return self.scale(torch.from_numpy(np.stack(pixels)).to(device)).to(dtype)

    def describe(self) -> dict[str, Any]:
        """All parameters, for the fingerprint and the collection's identity."""
        return {
            "size": [self.height, self.width],
            "resize": self.resize,
            "resample": self.resample.name.lower(),
            **({"fill": list(self.fill)} if self.resize == LONGEST else {}),
            **self.scale.describe(),
        }

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height before the crop. open_clip rounds down for a square that is filled, as
        torchvision does, else to the nearest; a side of 0 it cannot resize to is 1 here."""
        if self.resize == SQUASH:
            return self.width, self.height
        if self.resize == SHORTEST and self.width == self.height:
            side = self.width
            if width <= height:
                return side, int(side * height / width)
            return int(side * width / height), side
        ratios = height / self.height, width / self.width
        ratio = max(ratios) if self.resize == LONGEST else min(ratios)
        return max(1, round(width / ratio)), max(1, round(height / ratio))

    def _middle(self, pixels: np.ndarray) -> np.ndarray:
        """What lies in the middle of a picture, which is put on `fill` where it is smaller."""
        top, left = _start(pixels.shape[0], self.height), _start(pixels.shape[1], self.width)
        inside = pixels[max(0, top) : top + self.height, max(0, left) : left + self.width]
        height, width, _ = inside.shape
        if (height, width) == (self.height, self.width):
            return inside
        seen = np.full((self.height, self.width, 3), self.fill, np.uint8)
        above, before = max(0, -top), max(0, -left)
        seen[above : above + height, before : before + width] = inside
        return seen


def _start(length: int, wanted: int) -> int:
    """Where the middle begins: torchvision rounds a half to the even number, and the margin of a
    shorter picture down."""
    return round((length - wanted) / 2) if length > wanted else -((wanted - length) // 2)


def _require(title: str, name: str, value: Any, known: Sequence[str]) -> None:
    if value not in known:
        raise EncoderError(
            title,
            expected=f"{name} of preprocess_cfg to be {' or '.join(known)}",
            found=repr(value),
        )


def _pair(size: int | Sequence[int], title: str) -> tuple[int, int]:
    """Height and width of an `image_size`, which is one number or both."""
    sides = [size, size] if isinstance(size, int) else size
    if isinstance(sides, Sequence) and len(sides) == 2:
        height, width = sides
        if isinstance(height, int) and isinstance(width, int) and min(height, width) > 0:
            return height, width
    raise EncoderError(
        title, expected="image_size of vision_cfg to be one or two numbers", found=repr(size)
    )


def _numbers(
    given: Mapping[str, Any], name: str, default: tuple[float, ...], title: str
) -> tuple[float, ...]:
    """A number by channel; one number stands for all three, and 0 alone for the default, as in
    open_clip."""
    value = given.get(name) or default
    values = [value] * 3 if isinstance(value, int | float) else value
    whole = isinstance(values, list | tuple) and len(values) == 3
    if whole and all(isinstance(number, int | float) for number in values):
        return tuple(map(float, values))
    raise EncoderError(
        title,
        expected=f"{name} of preprocess_cfg to be one number or three",
        found=repr(value)[:80],
    )

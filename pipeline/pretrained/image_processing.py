"""A model's image processor, split into two steps with the same result.

Resizing and cropping run in the decode threads, one picture at a time, to uint8; rescaling and
normalising run on the whole batch on the model's device. So a batch is copied to the device in a
quarter of the bytes, and decode threads do no float arithmetic. The steps are those of the Pillow
backend of transformers; the resize is that of pipeline/resizing.py, with `by_pillow` bit by bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.models.efficientnet.image_processing_pil_efficientnet import (
    EfficientNetImageProcessorPil,
)
from transformers.models.flava.image_processing_pil_flava import FlavaImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import (
    get_image_size_for_max_num_patches,
)

from chiasm.pipeline.errors import EncoderError
from chiasm.pipeline.resizing import Picture, resize

WHOLE = (0.0, 0.0, 1.0, 1.0)
# Resize, crop, rescale, normalise and no more, but for the scale of EfficientNet's, which its user
# knows, and for what FLAVA's makes beside the pixels, which no vector is made of.
PLAIN = {
    kind._preprocess for kind in (PilBackend, EfficientNetImageProcessorPil, FlavaImageProcessorPil)
}


class ImageProcessing(Protocol):
    """The preprocessing of a model. side: in pixels, None where pictures keep their shape."""

    @property
    def side(self) -> int | None: ...

    def preprocess(self, picture: Picture) -> np.ndarray:
        """One RGB picture -> uint8 (3, S, S), or (H, W, 3) where `side` is None."""
        ...

    def inputs(
        self, pixels: Sequence[np.ndarray], device: torch.device, dtype: torch.dtype
    ) -> dict[str, torch.Tensor]:
        """B outputs of `preprocess` -> the arguments of the model's image forward, on `device`."""
        ...

    def describe(self) -> dict[str, Any]:
        """All parameters, for the fingerprint and the collection's identity."""
        ...

    def covered(self, width: int, height: int) -> tuple[float, float, float, float]:
        """What the model sees of a picture of that size: left, top, right and bottom as shares of
        its width and height, beyond 0 and 1 where a margin is added."""
        ...


@dataclass(frozen=True)
class Scale:
    """uint8 -> the model's input range: (x * factor - mean) / std, by channel."""

    factor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, processor: Any) -> Scale:
        return cls(
            factor=float(processor.rescale_factor) if processor.do_rescale else 1.0,
            mean=_by_channel(processor.image_mean) if processor.do_normalize else (0.0,) * 3,
            std=_by_channel(processor.image_std) if processor.do_normalize else (1.0,) * 3,
        )

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """(..., 3, H, W) uint8 -> the same shape in float32."""
        mean = torch.tensor(self.mean, device=pixels.device)[:, None, None]
        std = torch.tensor(self.std, device=pixels.device)[:, None, None]
        return (pixels * self.factor - mean) / std

    def describe(self) -> dict[str, Any]:
        return {"rescale": self.factor, "mean": list(self.mean), "std": list(self.std)}


@dataclass(frozen=True)
class SquareProcessing:
    """Fixed resolution S: resized to S x S, or the short side resized and a centre crop."""

    side: int
    short: int | None  # the short side before the crop; None: resized to S x S, no crop
    resample: int
    scale: Scale

    @classmethod
    def of(cls, processor: Any, vision: Any, what: str) -> SquareProcessing:
        """From an image processor and the model's vision config, None for a model that takes any
        size; raises EncoderError for steps other than resize, crop, rescale and normalise, and for
        a size the model does not take."""
        side, short = _geometry(processor)
        if side is None:
            raise EncoderError(
                what,
                expected="an image processor that resizes, or resizes and crops, to a square",
                found=f"{type(processor).__name__} {processor.to_dict()}",
            )
        require_size(side, vision, what)
        return cls(side, short, _resampling(processor), Scale.of(processor))

    def preprocess(self, picture: Picture) -> np.ndarray:
        pixels = np.asarray(picture)
        height, width, _ = pixels.shape
        if self.short is None:
            square = resize(pixels, (self.side, self.side), self.resample)
        else:
            size = _short_side_size(width, height, self.short)
            square = _center_crop(resize(pixels, size, self.resample), self.side)
        return np.ascontiguousarray(square.transpose(2, 0, 1))

    def inputs(
        self, pixels: Sequence[np.ndarray], device: torch.device, dtype: torch.dtype
    ) -> dict[str, torch.Tensor]:
        batch = torch.from_numpy(np.stack(pixels)).to(device)  # (B, 3, S, S) uint8
        return {"pixel_values": self.scale(batch).to(dtype)}

    def describe(self) -> dict[str, Any]:
        return {
            "resize": [self.side, self.side] if self.short is None else {"short side": self.short},
            "resample": Image.Resampling(self.resample).name.lower(),
            "crop": None if self.short is None else [self.side, self.side],
            **self.scale.describe(),
        }

    def covered(self, width: int, height: int) -> tuple[float, float, float, float]:
        if self.short is None:
            return WHOLE
        resized = _short_side_size(width, height, self.short)
        left, top = ((length - self.side) // 2 / length for length in resized)
        return left, top, left + self.side / resized[0], top + self.side / resized[1]


@dataclass(frozen=True)
class PatchProcessing:
    """SigLIP2's NaFlex: aspect ratio kept, resized to at most `patches` squares of `patch` px."""

    patch: int
    patches: int
    resample: int
    scale: Scale

    @property
    def side(self) -> None:
        return None

    @classmethod
    def of(cls, processor: Any, vision: Any, what: str) -> PatchProcessing:
        """As SquareProcessing.of."""
        patches = getattr(processor, "max_num_patches", None)
        if not patches or not processor.do_resize or processor.patch_size != vision.patch_size:
            raise EncoderError(
                what,
                expected=f"an image processor that cuts patches of {vision.patch_size} px",
                found=f"{type(processor).__name__} {processor.to_dict()}",
                do="check that all files are of one model",
            )
        return cls(processor.patch_size, patches, _resampling(processor), Scale.of(processor))

    def preprocess(self, picture: Picture) -> np.ndarray:
        pixels = np.asarray(picture)
        height, width, _ = pixels.shape
        height, width = get_image_size_for_max_num_patches(height, width, self.patch, self.patches)
        return np.ascontiguousarray(resize(pixels, (width, height), self.resample))

    def inputs(
        self, pixels: Sequence[np.ndarray], device: torch.device, dtype: torch.dtype
    ) -> dict[str, torch.Tensor]:
        rows, width = len(pixels), 3 * self.patch**2
        values = torch.zeros(rows, self.patches, width, device=device, dtype=dtype)
        mask = torch.zeros(rows, self.patches, device=device, dtype=torch.int32)
        for row, picture in enumerate(pixels):
            cut = self._patches(torch.from_numpy(picture).to(device))
            values[row, : len(cut)], mask[row, : len(cut)] = cut.to(dtype), 1
        shapes = torch.tensor([picture.shape[:2] for picture in pixels], device=device)
        return {
            "pixel_values": values,
            "pixel_attention_mask": mask,
            "spatial_shapes": shapes // self.patch,  # (B, 2): patches down and across
        }

    def _patches(self, picture: torch.Tensor) -> torch.Tensor:
        """(H, W, 3) uint8 -> (N, P * P * 3) float32: patches row by row, channels last in each."""
        scaled = self.scale(picture.permute(2, 0, 1))  # (3, H, W)
        cut = scaled.unfold(1, self.patch, self.patch).unfold(2, self.patch, self.patch)
        return cut.permute(1, 2, 3, 4, 0).flatten(2).flatten(0, 1)  # from (3, h, w, P, P)

    def describe(self) -> dict[str, Any]:
        return {
            "resize": {"patch": self.patch, "patches": self.patches},
            "resample": Image.Resampling(self.resample).name.lower(),
            "crop": None,
            **self.scale.describe(),
        }

    def covered(self, width: int, height: int) -> tuple[float, float, float, float]:
        return WHOLE


def require_size(side: int, vision: Any, what: str) -> None:
    """EncoderError where pictures of `side` px are not those of a model's vision config; None: it
    takes any."""
    if vision is not None and _square_side(vision.image_size) != side:
        raise EncoderError(
            what,
            expected=f"pictures of {vision.image_size} px, as config.json says",
            found=f"an image processor that makes {side} px",
            do="check that all files are of one model",
        )


def _geometry(processor: Any) -> tuple[int | None, int | None]:
    """(side, short side before the crop or None); (None, None) for other shapes and steps."""
    plain = type(processor)._preprocess in PLAIN and not processor.do_pad
    if not plain or not processor.do_resize:
        return None, None
    size, crop = processor.size, processor.crop_size if processor.do_center_crop else None
    if crop is None:
        return (size.height, None) if _is_square(size) else (None, None)
    fits = _is_square(crop) and size.shortest_edge and not size.longest_edge
    return (crop.height, size.shortest_edge) if fits else (None, None)


def _short_side_size(width: int, height: int, short: int) -> tuple[int, int]:
    """The size with a short side of `short`; the long side is rounded down, as in transformers."""
    if width <= height:
        return short, int(short * height / width)
    return int(short * width / height), short


def _center_crop(pixels: np.ndarray, side: int) -> np.ndarray:
    """The central `side` x `side` of (H, W, 3), with black around a picture that is smaller."""
    left, top = (pixels.shape[1] - side) // 2, (pixels.shape[0] - side) // 2
    inside = pixels[max(0, top) : top + side, max(0, left) : left + side]
    height, width, _ = inside.shape
    if (height, width) == (side, side):
        return inside
    square = np.zeros((side, side, 3), np.uint8)
    above, before = max(0, -top), max(0, -left)
    square[above : above + height, before : before + width] = inside
    return square


def _is_square(size: Any) -> bool:
    return size is not None and bool(size.height) and size.height == size.width


def _square_side(side: int | Sequence[int]) -> int | None:
    """A side that configs write as 224 or [224, 224]; None where the two differ."""
    if isinstance(side, int):
        return side
    return side[0] if len(set(side)) == 1 else None


def _by_channel(value: float | Sequence[float]) -> tuple[float, ...]:
    return tuple(map(float, value)) if isinstance(value, Sequence) else (float(value),) * 3


def _resampling(processor: Any) -> int:
    return int(Image.Resampling.BILINEAR if processor.resample is None else processor.resample)

"""The one place that resizes pictures for models: by torch, or by Pillow to the bit.

Torch's antialiased kernels for uint8 are those of Pillow, with weights of 16 bits in place of 22: a
pixel differs by a level or two, by 0.01 of 255 on average, at a fifth of the time. They run on the
caller's thread alone. Pixels are copied by numpy and never by torch, whose copies would start a
team of threads from every thread that decodes.

Which of the two is chosen by whoever prepares pictures for a model, not by the model: `by_pillow`
holds for the calls inside it, in their thread and context. There pictures are decoded by Pillow
too, so that queries are prepared as the rows of `decode.exact` are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

import numpy as np
from PIL import Image

Mode = Literal["bilinear", "bicubic"]
Picture = np.ndarray | Image.Image  # uint8 (H, W, 3), or mode RGB
_BY_PILLOW = ContextVar("by_pillow", default=False)
_MODES: dict[int, Mode] = {
    Image.Resampling.BILINEAR: "bilinear",
    Image.Resampling.BICUBIC: "bicubic",
}


def is_by_pillow() -> bool:
    """Whether the caller is inside of `by_pillow`."""
    return _BY_PILLOW.get()


@contextmanager
def by_pillow(wanted: bool = True) -> Iterator[None]:
    """Inside, pictures are decoded and resized by Pillow alone, where that is wanted."""
    token = _BY_PILLOW.set(wanted)
    try:
        yield
    finally:
        _BY_PILLOW.reset(token)


def use_pillow(wanted: bool) -> None:
    """The same from now on, for a command that ends with its process."""
    _BY_PILLOW.set(wanted)


def resize(picture: Picture, size: tuple[int, int], resample: int) -> np.ndarray:
    """An RGB picture, or a view of one that is turned, mirrored or cut -> uint8 (h, w, 3).

    size: (w, h), as Pillow has it. resample: one of `PIL.Image.Resampling`; those that torch does
    not have are Pillow's."""
    pixels, mode = np.asarray(picture), _MODES.get(resample)
    if is_by_pillow() or mode is None:
        return np.array(Image.fromarray(pixels).resize(size, resample))
    down, across = pixels.shape[0] - size[1], pixels.shape[1] - size[0]
    # By this rule Pillow 13 resizes columns before rows. Bits depend on the order: pixels are
    # rounded and clipped in between.
    return _by_torch(pixels, size, mode, columns_first=down > 0 and down > 2 * across)


def _by_torch(
    pixels: np.ndarray, size: tuple[int, int], mode: Mode, *, columns_first: bool
) -> np.ndarray:
    """As `resize`. A turned picture is resized as it lies in memory, the small one turned then."""
    down, across, _ = pixels.strides
    if abs(down) < abs(across):
        turned, order = pixels.swapaxes(0, 1), not columns_first
        return _by_torch(turned, size[::-1], mode, columns_first=order).swapaxes(0, 1)
    if down < 0 or across < 0:
        mirror = np.s_[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]
        return _by_torch(pixels[mirror], size, mode, columns_first=columns_first)[mirror]
    if columns_first:
        pixels = _interpolated(pixels, (pixels.shape[1], size[1]), mode)
    return _interpolated(pixels, size, mode)  # torch resizes rows first


def _interpolated(pixels: np.ndarray, size: tuple[int, int], mode: Mode) -> np.ndarray:
    import torch  # slow to load, and this module is imported by commands that resize nothing

    if (pixels.shape[1], pixels.shape[0]) == size:
        return pixels
    whole = np.ascontiguousarray(pixels)
    if not whole.flags.writeable:  # torch warns of such
        whole = whole.copy()
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(whole).permute(2, 0, 1)[None],
        size=size[::-1],
        mode=mode,
        antialias=True,
    )
    return resized[0].permute(1, 2, 0).numpy()

"""Picture -> input of the image tower; one function for training and for the encoder.

The shorter side is resized to S and the middle square is cut out, as CLIP does: a squashed
photograph would have proportions that the model never learned, and a cropped margin costs less.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from chiasm.pipeline.resizing import Picture, resize

RULE = (
    "shorter side to S, bicubic with antialiasing, rounded; centre crop S x S; RGB uint8 (3, S, S)"
)


def to_pixels(picture: Picture, side: int) -> np.ndarray:
    """An RGB picture of any size -> uint8 (3, S, S)."""
    pixels = np.asarray(picture)
    height, width = pixels.shape[:2]
    shorter = min(width, height)
    if shorter != side:
        width, height = (max(side, round(length * side / shorter)) for length in (width, height))
        pixels = resize(pixels, (width, height), Image.Resampling.BICUBIC)
    left, top = (width - side) // 2, (height - side) // 2
    square = pixels[top : top + side, left : left + side]
    return np.ascontiguousarray(square.transpose(2, 0, 1))


def covered(width: int, height: int, side: int) -> tuple[float, float, float, float]:
    """What `to_pixels` keeps of a picture of that size: left, top, right and bottom as shares of
    its width and height."""
    shorter = min(width, height)
    resized = [max(side, round(length * side / shorter)) for length in (width, height)]
    left, top = ((length - side) // 2 / length for length in resized)
    return left, top, left + side / resized[0], top + side / resized[1]

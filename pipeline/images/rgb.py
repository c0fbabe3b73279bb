"""A decoded picture of any mode -> RGB: on white, 8 bits a channel.

Grey of 16 or 32 bits is scaled in bands of rows, so that no whole picture is in memory as floats.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageCms

_BAND = 1 << 20  # pixels


def is_grey(image: Image.Image) -> bool:
    """Whether a picture of any Pillow mode has one channel of brightness, beside transparency."""
    return image.mode in ("1", "L", "LA", "La", "I", "F") or image.mode.startswith("I;16")


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture of any Pillow mode -> mode RGB, transparency on white."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _to_8_bits(image).convert("RGB")
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert converted is not None  # it is None only when converting in place
        return converted
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    if image.mode == "La":  # Pillow converts premultiplied grey only to plain grey
        image = image.convert("LA")
    if image.mode != "RGBA":
        image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image)
    return white


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale grey of 16 or 32 bits, integers or floats, to 8 bits.

    16 bits have the full range by definition. No format defines the range of wider numbers: it is
    the narrowest of 0-1 (floats), 0-255 and 0-65535 that contains them, else from their minimum to
    their maximum."""
    low, high = (0.0, 65535.0) if image.mode.startswith("I;16") else _range_of(image)
    grey = Image.new("L", image.size)
    for top, values in _bands(image):
        with np.errstate(all="ignore"):  # infinite floats become the ends of the range
            values -= low
            values *= np.float32(255 / ((high - low) or 1))
        np.nan_to_num(values, copy=False, nan=0, posinf=255, neginf=0)
        rounded = values.clip(0, 255, out=values).round(out=values).astype(np.uint8)
        grey.paste(Image.fromarray(rounded), (0, top))
    return grey


def _range_of(image: Image.Image) -> tuple[float, float]:
    low, high = np.inf, -np.inf
    for _, values in _bands(image):
        finite = values[np.isfinite(values)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    if low > high:  # no number at all
        return 0.0, 0.0
    if low < 0:
        return low, high
    ranges = ((1.0,) if image.mode == "F" else ()) + (255.0, 65535.0, high)
    return 0.0, next(top for top in ranges if high <= top)


def _bands(image: Image.Image) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, rows as float32), from the top down."""
    rows = max(1, _BAND // image.width)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(image.height, top + rows)))
        yield top, np.asarray(band).astype(np.float32)

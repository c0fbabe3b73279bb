"""Values of a query that cannot be used, refused in one line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.records import IMAGE, TEXT


def check_input(text: object, image: object) -> None:
    """Raises TypeError for a text or a picture of a type that cannot be used."""
    if text is not None and not isinstance(text, str):
        raise TypeError(f"text: expected str, found {type(text).__name__}")
    if image is None or isinstance(image, str | Path | bytes | Image.Image):
        return
    if not isinstance(image, np.ndarray):
        found = type(image).__name__
    elif image.dtype == np.uint8 and image.size and _has_picture_shape(image):
        return
    else:
        found = f"an array of {image.dtype} {image.shape}"
    raise TypeError(
        "image: expected a path, a URL, an encoded file as bytes, a PIL picture or an array of "
        f"uint8 (H, W, 3) or (H, W), found {found}"
    )


def check_members(members: object) -> None:
    """Raises TypeError or UsageError for anything but a file for each of some modalities beyond
    texts and pictures."""
    if not isinstance(members, Mapping):
        raise TypeError(f"members: expected a dict, found {type(members).__name__}")
    for modality, source in members.items():
        if not isinstance(modality, str) or not isinstance(source, str | Path | bytes):
            found = f"{type(modality).__name__} and {type(source).__name__}"
            raise TypeError(
                "members: expected names of modalities, each with a path, a URL or a file as "
                f"bytes, found {found}"
            )
        if modality in (TEXT, IMAGE):
            raise UsageError(f"members[{modality!r}]", expected=f"that as {modality}")


def _has_picture_shape(image: np.ndarray) -> bool:
    return image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)


def require_whole(least: int, **numbers: Any) -> None:
    """Raises UsageError for what is no whole number, or one below `least`."""
    for name, number in numbers.items():
        whole = isinstance(number, int | np.integer) and not isinstance(number, bool)
        if not whole or number < least:
            raise UsageError(
                name, expected=f"a whole number from {least} up", found=repr(number)[:40]
            )


def require_number(name: str, number: object, least: float, most: float) -> None:
    """UsageError for anything but a finite number from `least` to `most`."""
    real = isinstance(number, Real) and not isinstance(number, bool)
    try:
        if real and math.isfinite(number) and least <= number <= most:  # type: ignore[arg-type]
            return
    except OverflowError:  # a whole number that no float holds
        pass
    limits = "" if math.isinf(most) else f" from {least:g} to {most:g}"
    raise UsageError(name, expected=f"a finite number{limits}", found=repr(number)[:40])

"""Embedded colour profiles (ICC) -> sRGB, by LittleCMS.

A profile is untrusted bytes. One that is broken, large or of a kind that says nothing about a
picture's own numbers is ignored: pixels are then taken for sRGB, as without a profile. Transforms
are kept for the profiles used last, since cameras and programs embed the same ones again and again.
"""

from __future__ import annotations

import functools
import io
import struct
from typing import Any

import numpy as np
from PIL import Image, ImageCms

MOST_BYTES = 4 << 20  # of a profile; large ones of printing presses have 2.6 MB
MOST_TAGS = 100  # as LittleCMS
_CACHED = 16  # profiles: 64 MB at the most, where all are hostile
_HEADER = 128
_SPACES = {"RGB": b"RGB ", "L": b"GRAY", "CMYK": b"CMYK"}  # mode -> colour space of the profile
_CLASSES = (b"mntr", b"scnr", b"prtr", b"spac")  # input, display, output, colour space
# Pipelines of floats may name one large table many times, and are read in full.
_FLOAT_TAGS = (b"D2B0", b"D2B1", b"D2B2", b"D2B3")
# Levels of 255 by which an sRGB profile may differ from LittleCMS's own sRGB: those in use differ
# from each other by the rounding of their curves.
_SAME = 2


def to_srgb(image: Image.Image, profile: Any) -> Image.Image | None:
    """A picture of mode RGB, L or CMYK whose numbers are those of `profile` -> mode RGB in sRGB.
    None where its pixels are to be taken as they are. profile: what Pillow found."""
    if not isinstance(profile, bytes) or len(profile) > MOST_BYTES:
        return None
    transform = _transform(profile, image.mode)
    return None if transform is None else transform.apply(image)


@functools.lru_cache(_CACHED)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """None for a profile that is sRGB, that is ignored, or that is of another colour space."""
    if not _is_usable(profile) or profile[16:20] != _SPACES.get(mode):
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(source, _srgb(), mode, "RGB")
        probe = _probe(mode)
        made = np.asarray(transform.apply(probe), np.int16)
    except Exception:  # noqa: BLE001  a broken profile says nothing about the pixels
        return None
    if mode != "CMYK" and np.abs(made - np.asarray(probe.convert("RGB"))).max() <= _SAME:
        return None
    return transform


def _is_usable(profile: bytes) -> bool:
    """Whether a profile's header and its table of tags are such that it can be read at a bounded
    cost and describes a picture."""
    if len(profile) < _HEADER + 4 or profile[36:40] != b"acsp" or profile[12:16] not in _CLASSES:
        return False
    (count,) = struct.unpack_from(">L", profile, _HEADER)
    table = profile[_HEADER + 4 : _HEADER + 4 + 12 * count] if count <= MOST_TAGS else b""
    tags = [table[at : at + 4] for at in range(0, len(table), 12)]
    return bool(tags) and not any(tag in _FLOAT_TAGS for tag in tags)


@functools.cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _probe(mode: str) -> Image.Image:
    """Colours of all kinds, and every grey."""
    if mode != "RGB":
        return Image.linear_gradient("L").convert(mode)
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, 3)
    greys = np.arange(256, dtype=np.uint8)[:, None].repeat(3, 1)
    return Image.fromarray(np.concatenate([grid, greys])[None])

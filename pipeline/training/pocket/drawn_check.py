"""Does a picture show what was asked for? Background, colours and places, read from pixels alone.

The background is the drawn one that fits best where it fits best: things cover less than half of a
picture. What differs from it is foreground, and the foreground in the middle of each of the nine
places tells whether a thing lies there. Its colour is the one whose drawn sprites most likely gave
these pixels (naive Bayes over a histogram of colours). No model is asked, so a model that
draws and one that judges cannot agree on the same fault. Kinds, sizes and textures are not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from PIL import Image
from scipy.ndimage import binary_fill_holes, gaussian_filter

from chiasm.pipeline.model.preprocess import to_pixels
from chiasm.pipeline.scenes.claims import Claims, holds
from chiasm.pipeline.scenes.draw import CENTRES, TILTS, VARIANTS, background, sprite
from chiasm.pipeline.scenes.world import (
    COLOURS,
    KINDS,
    PLACES,
    TEXTURES,
    WORLD_2,
    Scene,
    Thing,
)

SIDE = 72  # pixels; pictures of other sizes are resized
BACKGROUND_SHARE = 0.72  # of the pixels, the best fitting, by which a background is chosen
DIFFERENT = 30.0  # distance in RGB from the background, from which on a pixel is foreground
WINDOW = 8  # half the side of the middle of a place: a small thing is some 16 pixels wide
# Of the middle, from which on a thing lies there: of 500 true pictures, no thing covered less than
# 0.35 and no empty place was covered more than 0.22.
COVERED = 0.29
BINS = 16  # of the histogram of colours, in each channel
BLUR = 1.0  # of the histogram, in bins: a drawn colour may be a little off
FLOOR = 1e-5  # least probability of a bin: what no sprite shows decides nothing alone


@dataclass(frozen=True)
class Reading:
    """What a picture shows: its background, and the colours of things by their places."""

    background: str
    colours: Mapping[str, str]


def read_picture(image: Image.Image) -> Reading:
    """An RGB picture of any size, as `draw.picture` makes them -> what it shows."""
    pixels = to_pixels(image, SIDE).transpose(1, 2, 0).astype(np.float32)  # (S, S, 3)
    # A quarter of the pixels choose the background: a quarter of the time.
    distances = np.linalg.norm(pixels[::2, ::2] - _backgrounds()[:, ::2, ::2], axis=-1)
    fitting = np.sort(distances.reshape(len(distances), -1), axis=1)
    best = int(fitting[:, : int(BACKGROUND_SHARE * fitting.shape[1])].mean(axis=1).argmin())
    different = np.linalg.norm(pixels - _backgrounds()[best], axis=-1) > DIFFERENT
    # An outline encloses what looks like the background: white on snow.
    foreground = binary_fill_holes(different)
    colours = {}
    for place, window in _windows().items():
        if foreground[window].mean() > COVERED:
            colours[place] = _colour(pixels[window][foreground[window]])
    return Reading(WORLD_2.backgrounds[best // VARIANTS], colours)


def agrees(image: Image.Image, scene: Scene) -> bool:
    """Does a picture show the scene's background, and things of its colours in its places, and no
    others?"""
    wanted = {thing.place: thing.colour for thing in scene.things}
    return read_picture(image) == Reading(scene.background, wanted)


def agrees_with_caption(image: Image.Image, claims: Claims) -> bool:
    """Does a picture show as many things as a complete caption claims, such that its claims of
    background, colours, places and relations hold?"""
    reading = read_picture(image)
    # Kinds, sizes and textures were not read: any will do, and none is claimed.
    things = tuple(
        Thing(KINDS[i], colour, "big", "plain", place)
        for i, (place, colour) in enumerate(reading.colours.items())
    )
    seen = replace(
        claims,
        things=tuple(replace(t, kind=None, size=None, texture=None) for t in claims.things),
    )
    return len(things) == len(claims.things) and holds(seen, Scene(things, reading.background))


def _colour(pixels: np.ndarray) -> str:
    """RGB pixels (P, 3) of a thing -> the likeliest of COLOURS."""
    bins = _bins(pixels)
    return COLOURS[int(_log_probabilities()[:, bins].sum(axis=1).argmax()) // len(TEXTURES)]


def _bins(pixels: np.ndarray) -> np.ndarray:
    """RGB (P, 3), 0 to 255 -> the bin of each, int64 (P,)."""
    red, green, blue = (pixels.astype(np.int64) * BINS // 256).T
    return (red * BINS + green) * BINS + blue


@lru_cache(maxsize=1)
def _log_probabilities() -> np.ndarray:
    """(10 colours x 4 textures, BINS ** 3): log probability of a pixel's bin in drawn sprites."""
    rows = []
    for colour in COLOURS:
        for texture in TEXTURES:
            drawn = [
                np.asarray(sprite(kind, colour, size, texture, len(TILTS) // 2, SIDE))
                for kind in KINDS[::3]
                for size in ("small", "big")
            ]
            solid = np.concatenate([item[item[..., 3] == 255][:, :3] for item in drawn])
            counts = np.bincount(_bins(solid), minlength=BINS**3).astype(float)
            rows.append(counts / counts.sum())
    table = np.stack(rows).reshape(-1, BINS, BINS, BINS)
    return np.log(gaussian_filter(table, (0, BLUR, BLUR, BLUR)).reshape(len(rows), -1) + FLOOR)


@lru_cache(maxsize=1)
def _backgrounds() -> np.ndarray:
    """(12 x VARIANTS, S, S, 3) float32, variants of one background side by side."""
    drawn = [background(name, i, SIDE) for name in WORLD_2.backgrounds for i in range(VARIANTS)]
    return np.stack([np.asarray(item, dtype=np.float32) for item in drawn])


@lru_cache(maxsize=1)
def _windows() -> dict[str, tuple[slice, slice]]:
    """The middle of each place, as rows and columns of pixels."""
    middles = [slice(round(c * SIDE) - WINDOW, round(c * SIDE) + WINDOW) for c in CENTRES]
    return {place: (middles[i // 3], middles[i % 3]) for i, place in enumerate(PLACES)}

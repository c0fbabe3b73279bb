"""Facts -> picture: a scene goes in, a square RGB picture comes out.

Things are painted as sprites, four times too large and then reduced, which is what makes the edges
smooth. Sprites and backgrounds come in a few variants each and are cached: a picture costs some
0.05 ms once they are warm, so that training can draw a fresh world and never see a picture twice.
The cost is memory: about 40 MB for all sprites of one picture size.
"""

from __future__ import annotations

import math
import random
from functools import lru_cache

from PIL import Image, ImageChops, ImageDraw

from chiasm.pipeline.scenes.shapes import SHAPES, Primitive
from chiasm.pipeline.scenes.world import Scene

SIDE = 96  # pixels
SMOOTH = 4  # supersampling
CENTRES = (0.18, 0.5, 0.82)  # of columns and rows, as parts of the side
EXTENT = {"small": 0.22, "big": 0.33}  # a big thing just fills its place: neighbours do not overlap
SHIFT = 0.012  # how far a thing may be from the centre of its place
TILTS = (-9, -4, 0, 4, 9)  # degrees
VARIANTS = 6  # of each background

Colour = tuple[int, int, int]
INK: Colour = (44, 38, 52)
INKS: dict[str, Colour] = {
    "ink": INK, "light": (255, 251, 238), "leaf": (98, 158, 74), "wood": (128, 88, 58),
}  # fmt: skip
# Body and pattern colour: the pattern is lighter on dark colours and darker on light ones.
PAINT: dict[str, tuple[Colour, Colour]] = {
    "red": ((222, 52, 48), (255, 176, 164)),
    "orange": ((246, 140, 34), (255, 216, 150)),
    "yellow": ((252, 216, 58), (206, 156, 14)),
    "green": ((58, 164, 78), (176, 230, 164)),
    "blue": ((52, 106, 214), (170, 206, 255)),
    "purple": ((136, 72, 182), (216, 178, 244)),
    "pink": ((250, 152, 188), (214, 84, 138)),
    "brown": ((142, 90, 50), (214, 172, 128)),
    "white": ((252, 252, 250), (176, 180, 192)),
    "black": ((52, 50, 58), (146, 146, 158)),
}
SKIES: dict[str, tuple[Colour, Colour]] = {  # top and bottom of the gradient behind everything
    "meadow": ((176, 218, 246), (232, 246, 252)),
    "beach": ((156, 214, 246), (226, 244, 252)),
    "sea": ((112, 176, 214), (62, 128, 178)),
    "night": ((26, 30, 74), (66, 62, 122)),
    "snow": ((206, 220, 234), (238, 244, 250)),
    "desert": ((250, 224, 176), (252, 238, 208)),
    "room": ((244, 226, 206), (238, 214, 194)),
    "sunset": ((236, 138, 138), (252, 206, 142)),
}


def picture(scene: Scene, side: int = SIDE) -> Image.Image:
    """The scene as an RGB picture of side x side pixels; the same scene gives the same pixels."""
    rng = random.Random(scene.style_seed)
    canvas = background(scene.background, rng.randrange(VARIANTS), side).copy()
    for thing in scene.things:
        tilt = rng.randrange(len(TILTS))
        drawn = sprite(thing.kind, thing.colour, thing.size, thing.texture, tilt, side)
        x, y = (CENTRES[i] + rng.uniform(-SHIFT, SHIFT) for i in (thing.column, thing.row))
        corner = (round(x * side - drawn.width / 2), round(y * side - drawn.height / 2))
        canvas.paste(drawn, corner, drawn)
    return canvas


@lru_cache(maxsize=2**14)
def sprite(kind: str, colour: str, size: str, texture: str, tilt: int, side: int) -> Image.Image:
    """One thing, outlined, on a transparent ground: RGBA, for a picture of `side` pixels."""
    extent = EXTENT[size] * side * SMOOTH
    # Room for the outline and for what a tilt turns out of the box, a multiple of SMOOTH.
    large = math.ceil(extent * 1.24 / SMOOTH) * SMOOTH
    shape, outline = SHAPES[kind], max(3, round(extent * 0.05))
    body = Image.new("L", (large, large))
    _fill(body, shape.body, 255, extent)
    _fill(body, shape.cuts, 0, extent)
    edge = _widened(body, outline // 2)
    paint, pattern = PAINT[colour]
    filling = Image.new("RGB", (large, large), paint)
    filling.paste(Image.new("RGB", filling.size, pattern), mask=_pattern(texture, large, extent))
    drawn = Image.new("RGBA", (large, large), (*INK, 0))
    drawn.paste(Image.new("RGB", filling.size, INK), mask=edge)
    drawn.paste(filling, mask=body)
    for ink, primitive in shape.details:
        mask = Image.new("L", (large, large))
        _fill(mask, (primitive,), 255, extent)
        tone = tuple(c * 7 // 10 for c in paint) if ink == "shade" else INKS[ink]
        drawn.paste(tone, mask=mask)
    # The colour under transparent pixels is the ink's, so that resampling makes no pale fringe.
    turned = drawn.rotate(TILTS[tilt], Image.Resampling.BILINEAR, fillcolor=(*INK, 0))
    return turned.reduce(SMOOTH)


def _widened(mask: Image.Image, by: int) -> Image.Image:
    """The mask grown by some pixels: eight shifted copies, a tenth of the cost of a maximum
    filter.
    """
    wide, slant = mask.copy(), round(by * math.sqrt(0.5))
    for x, y in ((by, 0), (0, by), (slant, slant), (slant, -slant)):
        for sign in (1, -1):
            # The margin is wider than the shift, so nothing comes back on the other side.
            wide = ImageChops.lighter(wide, ImageChops.offset(mask, sign * x, sign * y))
    return wide


def _fill(mask: Image.Image, primitives: tuple[Primitive, ...], value: int, extent: float) -> None:
    """Paint primitives, given in units of half the extent, onto a mask."""
    draw, centre, unit = ImageDraw.Draw(mask), mask.width / 2, extent / 2
    for form, coordinates in primitives:
        at = [centre + c * unit for c in coordinates]
        if form == "polygon":
            draw.polygon(at, fill=value)
        elif form == "ellipse":
            draw.ellipse(at, fill=value)
        else:
            draw.rectangle(at, fill=value)


def _pattern(texture: str, large: int, extent: float) -> Image.Image:
    """Where the pattern colour goes: an L mask of large x large; periods follow the thing's
    size.
    """
    mask = Image.new("L", (large, large))
    draw = ImageDraw.Draw(mask)
    step = max(extent / 5, 4 * SMOOTH)  # a period under 4 pixels would be grey, not a pattern
    cells = math.ceil(large / step) + 1
    for i in range(cells):
        if texture == "striped":
            draw.rectangle((0, i * step, large, (i + 0.5) * step), fill=255)
            continue
        for j in range(cells):
            x, y = i * step, j * step
            if texture == "spotted":
                x += step / 2 if j % 2 else 0
                draw.ellipse((x, y, x + 0.62 * step, y + 0.62 * step), fill=255)
            elif texture == "checked" and (i + j) % 2:
                draw.rectangle((x, y, x + step, y + step), fill=255)
    return mask


@lru_cache(maxsize=128)
def background(name: str, variant: int, side: int) -> Image.Image:
    """An empty stage: RGB of side x side, in one of VARIANTS arrangements."""
    large = side * SMOOTH
    # A string seeds random.Random alike on every machine and in every process.
    rng = random.Random(f"{name} {variant}")
    canvas = _gradient(*SKIES[name], large)
    _SCENERY[name](ImageDraw.Draw(canvas), large, rng)
    return canvas.reduce(SMOOTH)


def _gradient(top: Colour, bottom: Colour, large: int) -> Image.Image:
    ramp = Image.linear_gradient("L").resize((large, large))
    return Image.composite(
        Image.new("RGB", ramp.size, bottom), Image.new("RGB", ramp.size, top), ramp
    )


def _hill(
    draw: ImageDraw.ImageDraw, large: int, rng: random.Random, top: float, fill: Colour
) -> None:
    """Everything under a gently waving line at `top` (part of the side)."""
    phase, swing = rng.uniform(0, 2 * math.pi), rng.uniform(0.015, 0.04)
    line = [
        (x, large * (top + swing * math.sin(phase + 5 * x / large)))
        for x in range(0, large + 1, max(1, large // 48))
    ]
    draw.polygon([*line, (large, large), (0, large)], fill=fill)


def _meadow(draw: ImageDraw.ImageDraw, large: int, rng: random.Random) -> None:
    _hill(draw, large, rng, 0.5, (176, 218, 132))
    _hill(draw, large, rng, 0.62, (158, 206, 112))
    for _ in range(26):
        x, y = rng.uniform(0, large), rng.uniform(0.66, 0.98) * large
        draw.line(
            (x, y, x + 0.01 * large, y - 0.03 * large), fill=(124, 178, 86), width=large // 110
        )


def _beach(draw: ImageDraw.ImageDraw, large: int, rng: random.Random) -> None:
    draw.rectangle((0, 0.42 * large, large, 0.68 * large), fill=(96, 190, 214))
    _hill(draw, large, rng, 0.62, (250, 252, 250))
    _hill(draw, large, rng, 0.65, (244, 222, 172))
    for _ in range(22):
        x, y = rng.uniform(0, large), rng.uniform(0.72, 0.98) * large
        draw.ellipse((x, y, x + 0.014 * large, y + 0.01 * large), fill=(220, 192, 138))


def _sea(draw: ImageDraw.ImageDraw, large: int, rng: random.Random) -> None:
    for row in range(7):
        y, start = (0.1 + 0.135 * row) * large, rng.uniform(-0.2, 0) * large
        for i in range(8):
            x = start + 0.16 * i * large
            draw.arc(
                (x, y, x + 0.16 * large, y + 0.08 * large), 0, 180, (176, 214, 236), large // 80
            )


def _night(draw: ImageDraw.ImageDraw, large: int, rng: random.Random) -> None:
    for _ in range(34):
        x, y, r = (
            rng.uniform(0, large),
            rng.uniform(0, 0.8) * large,
            rng.uniform(0.004, 0.009) * large,
        )
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(246, 238, 190))
    _hill(draw, large, rng, 0.86, (34, 36, 66))


def _snow(draw: ImageDraw.ImageDraw, large: int, rng: random.Random) -> None:
    _hill(draw, large, rng, 0.52, (224, 232, 242))
    _hill(draw, large, rng, 0.66, (246, 249, 252))
    for _ in range(40):
        x, y, r = rng.uniform(0, large), rng.uniform(0, large), rng.uniform(0.006, 0.012) * large
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(255, 255, 255))


def _desert(draw: ImageDraw.ImageDraw, large: int, rng: random.Random) -> None:
    _hill(draw, large, rng, 0.48, (234, 184, 118))
    _hill(draw, large, rng, 0.64, (222, 166, 98))
    _hill(draw, large, rng, 0.82, (208, 150, 84))


def _room(draw: ImageDraw.ImageDraw, large: int, rng: random.Random) -> None:
    start = rng.uniform(0, 0.1)
    for i in range(10):
        x = (start + 0.1 * i) * large
        draw.rectangle((x, 0, x + 0.035 * large, 0.74 * large), fill=(234, 206, 188))
    draw.rectangle((0, 0.74 * large, large, large), fill=(190, 146, 112))
    draw.rectangle((0, 0.72 * large, large, 0.75 * large), fill=(250, 244, 236))
    for i in range(1, 4):
        y = (0.75 + 0.07 * i) * large
        draw.line((0, y, large, y), fill=(168, 124, 92), width=large // 100)


def _sunset(draw: ImageDraw.ImageDraw, large: int, rng: random.Random) -> None:
    x, r = rng.uniform(0.3, 0.7) * large, 0.17 * large
    draw.ellipse((x - r, 0.66 * large - r, x + r, 0.66 * large + r), fill=(255, 232, 168))
    _hill(draw, large, rng, 0.7, (176, 104, 130))
    _hill(draw, large, rng, 0.84, (142, 82, 118))


_SCENERY = {
    "meadow": _meadow, "beach": _beach, "sea": _sea, "night": _night,
    "snow": _snow, "desert": _desert, "room": _room, "sunset": _sunset,
}  # fmt: skip

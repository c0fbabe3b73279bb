"""Facts -> picture: a scene goes in, a square RGB picture comes out.

Things are painted as sprites, four times too large and then reduced, which is what makes the edges
smooth. Sprites and backgrounds come in a few variants each and are cached: a picture costs some
0.05 ms once they are warm, so that training can draw a fresh world and never see a picture twice.
The cost is memory: about 40 MB for all sprites of world 1 of one picture size, 80 MB for
world 2's.
"""

from __future__ import annotations

import math
import random
from functools import lru_cache

from PIL import Image, ImageChops, ImageDraw

from chiasm.pipeline.scenes.backgrounds import SMOOTH, VARIANTS, Colour, background
from chiasm.pipeline.scenes.shapes import Primitive
from chiasm.pipeline.scenes.shapes_world_2 import SHAPES_OF_BOTH
from chiasm.pipeline.scenes.world import Scene

SIDE = 96  # pixels
CENTRES = (0.18, 0.5, 0.82)  # of columns and rows, as parts of the side
EXTENT = {"small": 0.22, "big": 0.33}  # a big thing just fills its place: neighbours do not overlap
SHIFT = 0.012  # how far a thing may be from the centre of its place
TILTS = (-9, -4, 0, 4, 9)  # degrees

INK: Colour = (44, 38, 52)
INKS: dict[str, Colour] = {
    "ink": INK, "light": (255, 251, 238), "leaf": (98, 158, 74), "wood": (128, 88, 58),
    "skin": (242, 200, 164), "tear": (72, 176, 246),
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


@lru_cache(maxsize=2**15)
def sprite(kind: str, colour: str, size: str, texture: str, tilt: int, side: int) -> Image.Image:
    """One thing, outlined, on a transparent ground: RGBA, for a picture of `side` pixels."""
    extent = EXTENT[size] * side * SMOOTH
    # Room for the outline and for what a tilt turns out of the box, a multiple of SMOOTH.
    large = math.ceil(extent * 1.24 / SMOOTH) * SMOOTH
    shape, outline = SHAPES_OF_BOTH[kind], max(3, round(extent * 0.05))
    body = Image.new("L", (large, large))
    _fill(body, shape.body, 255, extent)
    _fill(body, shape.cuts, 0, extent)
    edge = _widened(body, outline // 2)
    paint, pattern = PAINT[colour]
    filling = Image.new("RGB", (large, large), paint)
    filling.paste(Image.new("RGB", filling.size, pattern), mask=_pattern(texture, large, extent))
    drawn = Image.new("RGBA", (large, large), (*INK, 0))
    if shape.rear:
        rear = Image.new("L", (large, large))
        _fill(rear, tuple(primitive for _, primitive in shape.rear), 255, extent)
        drawn.paste(Image.new("RGB", filling.size, INK), mask=_widened(rear, outline // 2))
        _paint(drawn, shape.rear, paint, extent)
    drawn.paste(Image.new("RGB", filling.size, INK), mask=edge)
    drawn.paste(filling, mask=body)
    _paint(drawn, shape.details, paint, extent)
    # The colour under transparent pixels is the ink's, so that resampling makes no pale fringe.
    turned = drawn.rotate(TILTS[tilt], Image.Resampling.BILINEAR, fillcolor=(*INK, 0))
    return turned.reduce(SMOOTH)


def _paint(
    drawn: Image.Image, details: tuple[tuple[str, Primitive], ...], paint: Colour, extent: float
) -> None:
    """Primitives in their inks onto a sprite, in order; `shade` is a darker tone of its paint."""
    for ink, primitive in details:
        mask = Image.new("L", drawn.size)
        _fill(mask, (primitive,), 255, extent)
        tone = tuple(c * 7 // 10 for c in paint) if ink == "shade" else INKS[ink]
        drawn.paste(tone, mask=mask)


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

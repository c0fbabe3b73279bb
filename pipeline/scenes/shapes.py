"""What each kind of thing looks like: primitives in a box from -1 to 1, y downwards.

`body` is filled with the thing's colour and texture and gets an outline; `cuts` are taken out of
it; `details` are painted over it in fixed inks, in order. A table, not code: a new kind is a new
entry.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

Primitive = tuple[str, tuple[float, ...]]  # ("ellipse" | "box" | "polygon", coordinates)


@dataclass(frozen=True, slots=True)
class Shape:
    """The primitives of one kind; an ink is one of `INKS` of draw.py, or `shade` (of the body).
    `rear` is painted in inks, with an outline, before the body.
    """

    body: tuple[Primitive, ...]
    cuts: tuple[Primitive, ...] = ()
    details: tuple[tuple[str, Primitive], ...] = ()
    rear: tuple[tuple[str, Primitive], ...] = ()


def disc(x: float, y: float, r: float, ry: float | None = None) -> Primitive:
    """An ellipse around (x, y)."""
    ry = r if ry is None else ry
    return ("ellipse", (x - r, y - ry, x + r, y + ry))


def box(left: float, top: float, right: float, bottom: float) -> Primitive:
    """A rectangle."""
    return ("box", (left, top, right, bottom))


def polygon(*coordinates: float) -> Primitive:
    """A polygon x0, y0, x1, y1, ..."""
    return ("polygon", coordinates)


def ring(points: int, inner: float, outer: float = 1.0, turn: float = -math.pi / 2) -> Primitive:
    """A star of `points` points between two radii."""
    radii = (outer, inner)
    steps = ((turn + math.pi * i / points, radii[i % 2]) for i in range(2 * points))
    return ("polygon", tuple(c for a, r in steps for c in (r * math.cos(a), r * math.sin(a))))


def line(width: float, *coordinates: float) -> tuple[Primitive, ...]:
    """A broken line x0, y0, x1, y1, ... of some width, with round corners."""
    points = list(zip(coordinates[::2], coordinates[1::2], strict=True))
    strokes = []
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        scale = width / 2 / math.hypot(x1 - x0, y1 - y0)
        across, along = (y1 - y0) * scale, (x1 - x0) * scale
        strokes.append(
            polygon(
                x0 + across, y0 - along, x1 + across, y1 - along,
                x1 - across, y1 + along, x0 - across, y0 + along,
            )
        )  # fmt: skip
    return (*strokes, *(disc(x, y, width / 2) for x, y in points[1:-1]))


def arc(
    x: float, y: float, r: float, ry: float, width: float, start: float, end: float
) -> Primitive:
    """A band of an ellipse around (x, y) between two angles in degrees, 0 to the right, 90 down."""
    angles = [math.radians(start + (end - start) * i / 16) for i in range(17)]
    outer = [
        (x + (r + width / 2) * math.cos(a), y + (ry + width / 2) * math.sin(a)) for a in angles
    ]
    inner = [
        (x + (r - width / 2) * math.cos(a), y + (ry - width / 2) * math.sin(a)) for a in angles
    ]
    return ("polygon", tuple(c for point in outer + inner[::-1] for c in point))


def inked(ink: str, *primitives: Primitive) -> tuple[tuple[str, Primitive], ...]:
    """Primitives as details of one ink."""
    return tuple((ink, primitive) for primitive in primitives)


def both_sides(*primitives: Primitive) -> tuple[Primitive, ...]:
    """Primitives and their mirror images at x = 0."""
    turned = []
    for form, at in primitives:
        xs, ys = [-c for c in at[::2]], at[1::2]
        if form != "polygon":
            xs = xs[::-1]  # the left edge comes first
        turned.append((form, tuple(c for point in zip(xs, ys, strict=True) for c in point)))
    return (*primitives, *turned)


def _heart() -> Primitive:
    steps = (2 * math.pi * i / 48 for i in range(48))
    curve = (
        (
            16 * math.sin(a) ** 3 / 16.5,
            -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)) / 15
            - 0.1,
        )
        for a in steps
    )
    return ("polygon", tuple(c for point in curve for c in point))


def _petals() -> tuple[Primitive, ...]:
    turns = (2 * math.pi * i / 6 for i in range(6))
    return tuple(disc(0.62 * math.cos(a), 0.62 * math.sin(a), 0.38) for a in turns)


def _smile() -> Primitive:
    low = [
        (0.5 * math.cos(a), 0.12 + 0.45 * math.sin(a))
        for a in (math.pi * i / 12 for i in range(13))
    ]
    high = [
        (0.5 * math.cos(a), 0.12 + 0.22 * math.sin(a))
        for a in (math.pi * i / 12 for i in range(13))
    ]
    return ("polygon", tuple(c for point in low + high[::-1] for c in point))


SHAPES: dict[str, Shape] = {
    "circle": Shape((disc(0, 0, 0.92),)),
    "square": Shape((box(-0.84, -0.84, 0.84, 0.84),)),
    "triangle": Shape((polygon(0, -0.95, 1, 0.85, -1, 0.85),)),
    "star": Shape((ring(5, 0.43),)),
    "heart": Shape((_heart(),)),
    "moon": Shape((disc(-0.05, 0, 0.95),), cuts=(disc(0.42, -0.18, 0.78),)),
    "tree": Shape(
        (
            disc(0, -0.35, 0.66), disc(-0.42, -0.02, 0.45), disc(0.42, -0.02, 0.45),
            box(-0.17, 0.2, 0.17, 1),
        ),
        details=(("wood", box(-0.17, 0.42, 0.17, 1)),),
    ),
    "house": Shape(
        (box(-0.74, -0.15, 0.74, 0.95), polygon(0, -1, 1, -0.1, -1, -0.1)),
        details=(
            ("shade", polygon(0, -1, 1, -0.1, -1, -0.1)),
            ("light", box(-0.5, 0.15, -0.08, 0.52)),
            ("ink", box(0.16, 0.25, 0.52, 0.95)),
        ),
    ),
    "boat": Shape(
        (
            polygon(-1, 0.3, 1, 0.3, 0.62, 0.9, -0.62, 0.9),
            polygon(0.08, -0.95, 0.85, 0.12, 0.08, 0.12),
        ),
        details=(
            ("wood", box(-0.08, -1, 0.06, 0.32)),
            ("light", polygon(-0.12, -0.7, -0.12, 0.12, -0.68, 0.12)),
        ),
    ),
    "fish": Shape(
        (disc(-0.2, 0, 0.78, 0.55), polygon(0.3, 0, 1, -0.6, 1, 0.6)),
        details=(("light", disc(-0.58, -0.12, 0.17)), ("ink", disc(-0.61, -0.12, 0.09))),
    ),
    "flower": Shape(_petals(), details=(("light", disc(0, 0, 0.33)), ("wood", disc(0, 0, 0.2)))),
    "face": Shape(
        (disc(0, 0, 0.92),),
        details=(
            ("light", disc(-0.36, -0.25, 0.22)), ("light", disc(0.36, -0.25, 0.22)),
            ("ink", disc(-0.36, -0.22, 0.13)), ("ink", disc(0.36, -0.22, 0.13)), ("ink", _smile()),
        ),
    ),
    "car": Shape(
        (box(-1, -0.05, 1, 0.5), polygon(-0.6, -0.05, -0.38, -0.6, 0.36, -0.6, 0.66, -0.05)),
        details=(
            ("light", polygon(-0.42, -0.08, -0.28, -0.44, 0.0, -0.44, 0.0, -0.08)),
            ("light", polygon(0.1, -0.08, 0.1, -0.44, 0.28, -0.44, 0.46, -0.08)),
            ("ink", disc(-0.5, 0.52, 0.3)), ("ink", disc(0.5, 0.52, 0.3)),
            ("light", disc(-0.5, 0.52, 0.13)), ("light", disc(0.5, 0.52, 0.13)),
        ),
    ),
    "cup": Shape(
        (polygon(-0.78, -0.55, 0.5, -0.55, 0.36, 0.8, -0.62, 0.8), disc(0.52, 0.08, 0.46)),
        cuts=(disc(0.6, 0.08, 0.2),),
        details=(("light", disc(-0.14, -0.55, 0.64, 0.17)), ("wood", disc(-0.14, -0.52, 0.5, 0.1))),
    ),
    "mushroom": Shape(
        (disc(0, -0.12, 0.96, 0.72), box(-0.3, 0.0, 0.3, 0.95)),
        cuts=(box(-1, 0.22, -0.3, 0.7), box(0.3, 0.22, 1, 0.7)),
        details=(("light", box(-0.3, 0.22, 0.3, 0.92)),),
    ),
    "umbrella": Shape(
        (disc(0, 0.05, 1, 0.92),),
        cuts=(box(-1.1, 0.08, 1.1, 1.1),),
        details=(
            ("ink", box(-0.07, 0.05, 0.07, 0.9)), ("ink", box(-0.36, 0.78, 0.07, 0.92)),
            ("ink", box(-0.36, 0.6, -0.24, 0.92)), ("ink", box(-0.06, -1, 0.06, -0.8)),
        ),
    ),
    "balloon": Shape(
        (disc(0, -0.32, 0.64, 0.68), polygon(-0.14, 0.46, 0.14, 0.46, 0, 0.28)),
        details=(
            ("ink", polygon(-0.03, 0.42, 0.05, 0.42, 0.2, 0.7, 0.06, 1, -0.02, 1, 0.1, 0.7)),
            ("light", disc(-0.24, -0.56, 0.13, 0.17)),
        ),
    ),
    "butterfly": Shape(
        (disc(-0.55, -0.38, 0.44, 0.5), disc(0.55, -0.38, 0.44, 0.5),
         disc(-0.46, 0.44, 0.36, 0.42), disc(0.46, 0.44, 0.36, 0.42)),
        details=(
            ("ink", disc(0, 0.05, 0.13, 0.8)),
            ("ink", polygon(0, -0.6, -0.3, -1, -0.2, -1, 0.06, -0.65)),
            ("ink", polygon(0, -0.6, 0.3, -1, 0.2, -1, -0.06, -0.65)),
        ),
    ),
    "cat": Shape(
        (disc(0, 0.15, 0.86, 0.76), polygon(-0.84, 0, -0.78, -0.98, -0.1, -0.5),
         polygon(0.84, 0, 0.78, -0.98, 0.1, -0.5)),
        details=(
            ("light", disc(-0.36, 0.02, 0.2, 0.22)), ("light", disc(0.36, 0.02, 0.2, 0.22)),
            ("ink", disc(-0.36, 0.04, 0.08, 0.18)), ("ink", disc(0.36, 0.04, 0.08, 0.18)),
            ("ink", polygon(-0.13, 0.34, 0.13, 0.34, 0, 0.5)),
            ("ink", box(-0.95, 0.36, -0.4, 0.42)), ("ink", box(0.4, 0.36, 0.95, 0.42)),
        ),
    ),
    "apple": Shape(
        (disc(-0.34, 0.2, 0.58, 0.72), disc(0.34, 0.2, 0.58, 0.72)),
        details=(
            ("wood", polygon(-0.06, -0.42, 0.08, -0.42, 0.12, -1, -0.02, -1)),
            ("leaf", disc(0.44, -0.72, 0.34, 0.18)),
        ),
    ),
}  # fmt: skip

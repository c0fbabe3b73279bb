"""What is behind the things of a scene: a gradient and a few strokes in front of it, in muted
colours, so that things of every colour stand out.
"""

from __future__ import annotations

import math
import random
from functools import lru_cache

from PIL import Image, ImageDraw

SMOOTH = 4  # supersampling
VARIANTS = 6  # of each background

Colour = tuple[int, int, int]
SKIES: dict[str, tuple[Colour, Colour]] = {  # top and bottom of the gradient behind everything
    "meadow": ((176, 218, 246), (232, 246, 252)),
    "beach": ((156, 214, 246), (226, 244, 252)),
    "sea": ((112, 176, 214), (62, 128, 178)),
    "night": ((26, 30, 74), (66, 62, 122)),
    "snow": ((206, 220, 234), (238, 244, 250)),
    "desert": ((250, 224, 176), (252, 238, 208)),
    "room": ((244, 226, 206), (238, 214, 194)),
    "sunset": ((236, 138, 138), (252, 206, 142)),
    "rainbow": ((150, 212, 250), (236, 250, 255)),
    "fair": ((255, 236, 190), (255, 248, 224)),
    "storm": ((58, 62, 76), (118, 124, 136)),
    "dead forest": ((150, 148, 146), (184, 182, 176)),
}


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


def _rainbow(draw: ImageDraw.ImageDraw, large: int, rng: random.Random) -> None:
    x, width = rng.uniform(0.42, 0.58) * large, 0.035 * large
    bands = ((238, 132, 132), (250, 190, 120), (250, 236, 140), (160, 220, 150), (150, 184, 240))
    for i, tone in enumerate((*bands, (206, 170, 230))):
        r = 0.56 * large - i * width
        draw.ellipse(
            (x - r, 0.62 * large - r, x + r, 0.62 * large + r), outline=tone, width=round(width)
        )
    _hill(draw, large, rng, 0.58, (190, 232, 148))
    _hill(draw, large, rng, 0.68, (172, 222, 126))
    for _ in range(30):
        x, y, r = rng.uniform(0, large), rng.uniform(0.72, 0.98) * large, 0.011 * large
        draw.ellipse((x - r, y - r, x + r, y + r), fill=rng.choice(bands))


def _fair(draw: ImageDraw.ImageDraw, large: int, rng: random.Random) -> None:
    """A striped tent's foot, two strings of flags, confetti."""
    tones = ((244, 150, 150), (250, 214, 120), (150, 206, 240), (170, 220, 150), (214, 170, 230))
    for row, top in enumerate((0.03, 0.3)):
        start = rng.uniform(-0.1, 0)
        for i in range(10):
            left = start + 0.12 * i
            sag = 0.05 * math.sin(math.pi * (left + 0.06))
            y = (top + sag) * large
            flag = (
                left * large,
                y,
                (left + 0.1) * large,
                y,
                (left + 0.05) * large,
                y + 0.1 * large,
            )
            draw.polygon(flag, fill=tones[(i + 2 * row) % len(tones)])
    for i in range(10):
        x = 0.1 * i * large
        tone = (246, 178, 172) if i % 2 else (255, 250, 240)
        draw.rectangle((x, 0.66 * large, x + 0.1 * large, large), fill=tone)
    draw.rectangle((0, 0.64 * large, large, 0.67 * large), fill=(244, 206, 120))
    for _ in range(40):
        x, y, r = rng.uniform(0, large), rng.uniform(0, large), rng.uniform(0.006, 0.01) * large
        draw.ellipse((x - r, y - r, x + r, y + r), fill=rng.choice(tones))


def _storm(draw: ImageDraw.ImageDraw, large: int, rng: random.Random) -> None:
    for _ in range(60):
        x, y = rng.uniform(0, 1.1) * large, rng.uniform(0.16, 0.95) * large
        draw.line(
            (x, y, x - 0.03 * large, y + 0.07 * large), fill=(150, 162, 180), width=large // 130
        )
    x = rng.uniform(0.2, 0.7)
    bolt = (0, 0.16, 0.1, 0.16, 0.04, 0.36, 0.12, 0.36, -0.06, 0.7, 0, 0.44, -0.07, 0.44)
    points = [(large * (x + u), large * v) for u, v in zip(bolt[::2], bolt[1::2], strict=True)]
    draw.polygon(points, fill=(250, 238, 150))
    for i in range(9):
        x, y, r = (
            (0.125 * i + rng.uniform(-0.03, 0.03)) * large,
            rng.uniform(0, 0.1) * large,
            0.13 * large,
        )
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(44, 46, 58))
    _hill(draw, large, rng, 0.86, (62, 68, 70))


def _dead_forest(draw: ImageDraw.ImageDraw, large: int, rng: random.Random) -> None:
    """Bare trunks in a fog, the far ones paler."""
    for tone in ((140, 138, 136), (112, 108, 106)):
        for i in range(5):
            x = (0.1 + 0.2 * i + rng.uniform(-0.07, 0.07)) * large
            draw.rectangle((x, 0, x + 0.022 * large, 0.8 * large), fill=tone)
            for _ in range(4):
                y, side = rng.uniform(0.1, 0.6) * large, rng.choice((-1, 1))
                end = (x + side * 0.1 * large, y - 0.09 * large)
                draw.line((x + 0.01 * large, y, *end), fill=tone, width=large // 80)
    _hill(draw, large, rng, 0.78, (122, 116, 108))


_SCENERY = {
    "meadow": _meadow, "beach": _beach, "sea": _sea, "night": _night,
    "snow": _snow, "desert": _desert, "room": _room, "sunset": _sunset,
    "rainbow": _rainbow, "fair": _fair, "storm": _storm, "dead forest": _dead_forest,
}  # fmt: skip

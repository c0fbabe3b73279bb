"""Explanations drawn: heat over a picture, shades under the words of a text.

Warm is what speaks for the pair, cold what speaks against it; the strongest patch and the strongest
word have the full shade. What the model does not see of a picture, or read of a text, is faint.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from chiasm.index.sheet.typeface import Typeface
from chiasm.pipeline.encoders import Explanation, Word

WARM, COLD = "#e8590c", "#1971c2"
PAPER, INK, FAINT = "#fbfbfa", "#1d1c1a", "#84807a"
SIDE = 420  # of each of the two pictures, in pixels
GAP = 24
MOST_HEAT = 0.75  # how much of the picture the hottest patch hides
GREY = 0.55  # how much colour the picture loses beneath, so that warm is the heat
UNSEEN = 0.65  # how much of a margin is paper
MAX_LINES = 12


def heat_over(picture: Image.Image, explanation: Explanation) -> Image.Image:
    """The picture, RGB of any size, with the heat of its patches; a map without any stays cold."""
    width, height = picture.size
    left, top, right, bottom = explanation.box
    # Part of the grid that lies on the picture, in cells.
    rows, columns = explanation.patches.shape
    at = [max(0.0, left), max(0.0, top), min(1.0, right), min(1.0, bottom)]
    cells = (
        (at[0] - left) / (right - left) * columns,
        (at[1] - top) / (bottom - top) * rows,
        (at[2] - left) / (right - left) * columns,
        (at[3] - top) / (bottom - top) * rows,
    )
    pixels = [round(share * side) for share, side in zip(at, (width, height) * 2, strict=True)]
    size = (max(1, pixels[2] - pixels[0]), max(1, pixels[3] - pixels[1]))
    highest = float(explanation.patches.max()) or 1.0
    grid = Image.fromarray((explanation.patches / highest).astype(np.float32))
    heat = np.asarray(grid.resize(size, Image.Resampling.BICUBIC, cells)).clip(0, 1)
    canvas = np.asarray(picture, np.float32)
    grey = canvas @ np.array([0.299, 0.587, 0.114], np.float32)
    dimmed = canvas + GREY * (grey[..., None] - canvas)
    drawn = dimmed + UNSEEN * (np.array(ImageColor.getrgb(PAPER), np.float32) - dimmed)
    seen = (slice(pixels[1], pixels[1] + size[1]), slice(pixels[0], pixels[0] + size[0]))
    shade = MOST_HEAT * heat[..., None][: dimmed[seen].shape[0], : dimmed[seen].shape[1]]
    drawn[seen] = dimmed[seen] + shade * (
        np.array(ImageColor.getrgb(WARM), np.float32) - dimmed[seen]
    )
    return Image.fromarray(drawn.round().clip(0, 255).astype(np.uint8))


def explanation_sheet(picture: Image.Image, text: str, explanation: Explanation) -> Image.Image:
    """The picture, the same under heat, and the text on shades, as one picture."""
    face, small = Typeface(26), Typeface(14)
    enlarged = picture.copy()
    enlarged.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    if max(enlarged.size) < SIDE:
        factor = SIDE / max(enlarged.size)
        enlarged = enlarged.resize([max(1, round(side * factor)) for side in enlarged.size])
    width = 3 * GAP + 2 * SIDE
    lines = _lines(face, text, explanation, width - 2 * GAP)
    line_height = round(face.height * 1.25)
    top = 2 * GAP + enlarged.height
    height = top + len(lines) * line_height + 3 * small.height + GAP
    paper = Image.new("RGB", (width, height), PAPER)
    paper.paste(enlarged, (GAP, GAP))
    paper.paste(heat_over(enlarged, explanation), (2 * GAP + SIDE, GAP))
    canvas = ImageDraw.Draw(paper)
    for number, line in enumerate(lines):
        _draw_line(canvas, face, line, (GAP, top + number * line_height))
    below = top + len(lines) * line_height + small.height // 2
    for number, note in enumerate(_notes(explanation, bool(face.missing))):
        small.draw(canvas, (GAP, below + number * small.height), note, FAINT)
    return paper


def _notes(explanation: Explanation, missing: bool) -> list[str]:
    score = f"cosine {explanation.score:.3f}"
    if explanation.logit is not None:
        score += f", log odds {explanation.logit:.2f}"
    by = f"patches by {explanation.patches_by}, words by {explanation.words_by}"
    notes = [f"{score}; {by}; warm: for, cold: against"]
    if missing:
        notes.append("No font here has some of the characters; for Chinese install fonts-noto-cjk")
    return notes


Piece = tuple[str, float | None]
"""A part of a line and its shade in [-1, 1], None for what was not read."""


def _lines(face: Typeface, text: str, explanation: Explanation, width: int) -> list[list[Piece]]:
    """The text in lines no wider than `width`, broken between words only, each with its shade."""
    strongest = max((abs(word.relevance) for word in explanation.words), default=0) or 1.0
    pieces: list[Piece] = []
    at = 0
    for word in explanation.words:
        if word.start > at and pieces:
            pieces.append((" ", 0.0))
        drawn = _drawable(face, word)
        pieces.append((drawn, word.relevance / strongest))
        at = word.end - (drawn != word.text)  # Latin letters for Chinese words need a space
    if rest := face.wrap(text[explanation.read :], width, 2):
        pieces += [(" ", 0.0), *((line, None) for line in rest)]
    lines: list[list[Piece]] = [[]]
    used = 0.0
    for piece, shade in pieces:
        wide = face.width(piece)
        if lines[-1] and used + wide > width:
            lines.append([])
            used = 0.0
        if piece != " " or lines[-1]:
            lines[-1].append((piece, shade))
            used += wide
    return lines[:MAX_LINES]


def _drawable(face: Typeface, word: Word) -> str:
    (whole, *_) = face.wrap(face.transliterated(word.text), 2 * SIDE, 1) or [" "]
    return whole


def _draw_line(
    canvas: ImageDraw.ImageDraw, face: Typeface, line: list[Piece], at: tuple[int, int]
) -> None:
    left, top = at
    x = float(left)
    for piece, shade in line:
        wide = face.width(piece)
        if shade and piece != " ":
            box = (x - 1, top, x + wide + 1, top + face.height)
            canvas.rectangle(box, fill=_mixed(shade))
        face.draw(canvas, (x, top), piece, FAINT if shade is None else INK)
        x += wide


def _mixed(shade: float) -> str:
    """Paper with as much warm or cold as the shade says."""
    colour = ImageColor.getrgb(WARM if shade > 0 else COLD)
    part = MOST_HEAT * abs(shade)
    mixed = [
        round(a + part * (b - a)) for a, b in zip(ImageColor.getrgb(PAPER), colour, strict=True)
    ]
    return "#{:02x}{:02x}{:02x}".format(*mixed)

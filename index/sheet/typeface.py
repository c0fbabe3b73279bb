"""Text on pictures, in whatever fonts this computer has, Chinese included.

Pillow draws with one font and shows boxes for what it lacks. Here a chain of fonts is asked
character by character: a Latin one, then the first Chinese, Japanese and Korean one that is found
under the usual names. Characters that none has are left out and remembered, so that a sheet can say
so.
"""

from __future__ import annotations

import functools
from itertools import groupby
from typing import Any

from PIL import ImageDraw, ImageFont

LATIN = ["DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "Arial.ttf"]
LATIN_BOLD = ["DejaVuSans-Bold.ttf", "NotoSans-Bold.ttf", "LiberationSans-Bold.ttf", "Arialbd.ttf"]

# File and face: in Noto's collections, face 2 draws the characters as they are written in China.
CJK = [
    ("NotoSansCJK-Regular.ttc", 2),
    ("NotoSansCJKsc-Regular.otf", 0),
    ("NotoSansSC-Regular.otf", 0),
    ("NotoSansSC-Regular.ttf", 0),
    ("NotoSansSC[wght].ttf", 0),
    ("SourceHanSansSC-Regular.otf", 0),
    ("SourceHanSansCN-Regular.otf", 0),
    ("wqy-microhei.ttc", 0),
    ("wqy-zenhei.ttc", 0),
    ("DroidSansFallbackFull.ttf", 0),
    ("DroidSansFallback.ttf", 0),
    ("uming.ttc", 0),
    ("PingFang.ttc", 0),
    ("Hiragino Sans GB.ttc", 0),
    ("STHeiti Light.ttc", 0),
    ("msyh.ttc", 0),
    ("simhei.ttf", 0),
    ("simsun.ttc", 0),
]
_NO_CHARACTER = "\U0010ffff"  # of which every font shows its mark for what it lacks
_ELLIPSIS = "…"
_WIDE = "⺀"  # from here on characters stand alone: a line may break on either side


class Typeface:
    """A size of text, in pixels. `missing` holds the characters that no font had so far."""

    def __init__(self, size: int, *, bold: bool = False) -> None:
        self._fonts = _fonts(size, bold)
        self.height = round(size * 1.35)
        self.missing: set[str] = set()

    def shown(self, text: str) -> str:
        """The text without what cannot be drawn, white space tidied."""
        kept = [one for one in " ".join(text.split()) if self._font_of(one) is not None]
        return " ".join("".join(kept).split())

    def width(self, text: str) -> float:
        return sum(font.getlength(run) for font, run in self._runs(text))

    def draw(self, on: ImageDraw.ImageDraw, at: tuple[float, float], text: str, fill: str) -> None:
        """Draw one line with its top left corner at `at`."""
        x, y = at
        baseline = y + self._fonts[0].getmetrics()[0]
        for font, run in self._runs(text):
            on.text((x, baseline), run, font=font, fill=fill, anchor="ls")
            x += font.getlength(run)

    def wrap(self, text: str, width: float, lines: int) -> list[str]:
        """At most `lines` lines of at most `width` pixels; what is cut off ends in an ellipsis."""
        wrapped: list[str] = []
        line = ""
        for piece in _pieces(self.shown(text)):
            if not line or self.width((line + piece).rstrip()) <= width:
                line += piece
                continue
            wrapped.append(line.rstrip())
            line = piece
        wrapped = [self._cut(one, width) for one in [*wrapped, line.rstrip()] if one]
        if len(wrapped) > lines:
            wrapped = [*wrapped[: lines - 1], self._cut(wrapped[lines - 1] + _ELLIPSIS, width)]
        return wrapped

    def _cut(self, line: str, width: float) -> str:
        if self.width(line) <= width:
            return line
        while line and self.width(line + _ELLIPSIS) > width:
            line = line[:-1]
        return line.rstrip(" " + _ELLIPSIS) + _ELLIPSIS

    def _runs(self, text: str) -> list[tuple[ImageFont.FreeTypeFont, str]]:
        drawn = [(self._font_of(one), one) for one in text]
        return [
            (font, "".join(one for _, one in run))
            for font, run in groupby(drawn, key=lambda pair: pair[0])
            if font is not None
        ]

    def _font_of(self, one: str) -> ImageFont.FreeTypeFont | None:
        for font in self._fonts:
            if one == " " or _has(font, one):
                return font
        self.missing.add(one)
        return None


def _pieces(text: str) -> list[str]:
    """What must stay on one line: words with the space after them, and single wide characters."""
    pieces: list[str] = []
    for one in text:
        apart = not pieces or pieces[-1][-1] == " " or one >= _WIDE or pieces[-1][-1] >= _WIDE
        if apart and one != " ":
            pieces.append(one)
        elif pieces:
            pieces[-1] += one
    return pieces


@functools.lru_cache(maxsize=1 << 16)
def _has(font: ImageFont.FreeTypeFont, one: str) -> bool:
    if not one.isprintable():
        return False
    return _drawn(font, one) != _drawn(font, _NO_CHARACTER)


def _drawn(font: ImageFont.FreeTypeFont, one: str) -> bytes:
    mask: Any = font.getmask(one)  # Pillow's own image type, a buffer at run time only
    return bytes(mask)


@functools.cache
def _fonts(size: int, bold: bool) -> list[ImageFont.FreeTypeFont]:
    latin = [_font(name, 0, size) for name in (LATIN_BOLD if bold else LATIN)]
    cjk = (_font(name, face, size) for name, face in CJK)
    first = next((font for font in latin if font), None) or ImageFont.load_default(size)
    assert isinstance(first, ImageFont.FreeTypeFont)  # as every default font with a size is
    second = next((font for font in cjk if font), None)
    return [first, second] if second else [first]


def _font(name: str, face: int, size: int) -> ImageFont.FreeTypeFont | None:
    """A font by its file name, looked for where this system keeps fonts; None where it is not."""
    try:
        return ImageFont.truetype(name, size, index=face)
    except OSError:
        return None

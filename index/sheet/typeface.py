"""Text on pictures, in whatever fonts this computer has, Chinese included.

Pillow draws with one font and shows boxes for what it lacks. Here each character is drawn with the
first font that has it: a Latin one, the first Chinese, Japanese and Korean one found by its usual
file names, then whatever `fonts.find_font` finds for the character's script. Characters that no
font has are remembered in `missing`, so that a sheet can say so: captions are drawn without them,
`transliterated` writes them in Latin letters for a title.
"""

from __future__ import annotations

import functools
from itertools import groupby

from anyascii import anyascii
from PIL import ImageDraw, ImageFont

from chiasm.index.sheet.fonts import find_font, has_character, open_font

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
_ELLIPSIS = "…"
_WIDE = "⺀"  # from this character on, a line may break before and after each


class Typeface:
    """A size of text, in pixels. `missing` holds the characters that no font had so far."""

    def __init__(self, size: int, *, bold: bool = False) -> None:
        self._size = size
        self._fonts = _fonts(size, bold)
        self.height = round(size * 1.35)
        self.missing: set[str] = set()

    def drawable(self, text: str) -> str:
        """The text without characters that no font has, white space collapsed."""
        collapsed = " ".join(text.split())
        kept = [character for character in collapsed if self._font_of(character) is not None]
        return " ".join("".join(kept).split())

    def transliterated(self, text: str) -> str:
        """The text with Latin letters for each character that no font has (`Yue` for the Chinese
        moon), by anyascii's table; an escape such as `\\u6708` for what the table lacks too."""
        return "".join(
            character
            if character.isspace() or self._font_of(character) is not None
            else anyascii(character) or character.encode("unicode_escape").decode()
            for character in text
        )

    def width(self, text: str) -> float:
        return sum(font.getlength(run) for font, run in self._runs(text))

    def draw(
        self, canvas: ImageDraw.ImageDraw, at: tuple[float, float], text: str, fill: str
    ) -> None:
        """Draw one line with its top left corner at `at`."""
        x, y = at
        baseline = y + self._fonts[0].getmetrics()[0]
        for font, run in self._runs(text):
            canvas.text((x, baseline), run, font=font, fill=fill, anchor="ls")
            x += font.getlength(run)

    def wrap(self, text: str, width: float, lines: int) -> list[str]:
        """At most `lines` lines of at most `width` pixels; what is cut off ends in an ellipsis."""
        wrapped: list[str] = []
        line = ""
        for piece in _unbreakable_pieces(self.drawable(text)):
            if not line or self.width((line + piece).rstrip()) <= width:
                line += piece
                continue
            wrapped.append(line.rstrip())
            line = piece
        wrapped = [self._truncate(line, width) for line in [*wrapped, line.rstrip()] if line]
        if len(wrapped) > lines:
            last = self._truncate(wrapped[lines - 1] + _ELLIPSIS, width)
            wrapped = [*wrapped[: lines - 1], last]
        return wrapped

    def _truncate(self, line: str, width: float) -> str:
        if self.width(line) <= width:
            return line
        while line and self.width(line + _ELLIPSIS) > width:
            line = line[:-1]
        return line.rstrip(" " + _ELLIPSIS) + _ELLIPSIS

    def _runs(self, text: str) -> list[tuple[ImageFont.FreeTypeFont, str]]:
        with_fonts = [(self._font_of(character), character) for character in text]
        return [
            (font, "".join(character for _, character in run))
            for font, run in groupby(with_fonts, key=lambda pair: pair[0])
            if font is not None
        ]

    def _font_of(self, character: str) -> ImageFont.FreeTypeFont | None:
        for font in self._fonts:
            if character == " " or has_character(font, character):
                return font
        font = find_font(character, self._size)
        if font is None:
            self.missing.add(character)
        return font


def _unbreakable_pieces(text: str) -> list[str]:
    """What must stay on one line: words with the space after them, and single wide characters."""
    pieces: list[str] = []
    for character in text:
        starts_piece = (
            not pieces or pieces[-1][-1] == " " or character >= _WIDE or pieces[-1][-1] >= _WIDE
        )
        if starts_piece and character != " ":
            pieces.append(character)
        elif pieces:
            pieces[-1] += character
    return pieces


@functools.cache
def _fonts(size: int, bold: bool) -> list[ImageFont.FreeTypeFont]:
    latin = [open_font(name, 0, size) for name in (LATIN_BOLD if bold else LATIN)]
    cjk = (open_font(name, face, size) for name, face in CJK)
    first = next((font for font in latin if font), None) or ImageFont.load_default(size)
    assert isinstance(first, ImageFont.FreeTypeFont)  # as every default font with a size is
    second = next((font for font in cjk if font), None)
    return [first, second] if second else [first]

"""Fonts of this computer: by file name, by fontconfig, or by looking through the usual folders."""

from __future__ import annotations

import functools
import os
import subprocess
import unicodedata
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from PIL import ImageFont

FOLDERS = [
    "~/.local/share/fonts",
    "~/.fonts",
    "/usr/local/share/fonts",
    "/usr/share/fonts",
    "~/Library/Fonts",
    "/Library/Fonts",
    "/System/Library/Fonts",
    "C:/Windows/Fonts",
]
SUFFIXES = {".ttf", ".ttc", ".otf", ".otc"}
MAX_FILES = 2000  # fonts opened while looking for one script: about a second
MAX_SCRIPTS = 20  # scripts looked for in one process; symbols have a script each
FC_LIST_SECONDS = 10.0

_NO_CHARACTER = "\U0010ffff"  # for which every font draws its mark for a missing character

_found: dict[str, tuple[str, int] | None] = {}  # script -> font file and face, None where none is


def find_font(character: str, size: int) -> ImageFont.FreeTypeFont | None:
    """A font that has the character, None where none is found. Each script is looked for once."""
    if not character.isprintable():
        return None
    script = unicodedata.name(character, "UNKNOWN").split()[0]  # CJK, HANGUL, ARABIC, ...
    if script not in _found and len(_found) < MAX_SCRIPTS:
        _found[script] = _search(character)
    file = _found.get(script)
    font = open_font(*file, size) if file else None
    return font if font and has_character(font, character) else None


@functools.lru_cache(maxsize=256)
def open_font(name: str, face: int, size: int) -> ImageFont.FreeTypeFont | None:
    """A font by its path or its file name, which Pillow looks for where this system keeps fonts;
    None where there is none."""
    try:
        return ImageFont.truetype(name, size, index=face)
    except OSError:
        return None


@functools.lru_cache(maxsize=1 << 16)
def has_character(font: ImageFont.FreeTypeFont, character: str) -> bool:
    if not character.isprintable():
        return False
    unshaped = _unshaped(font)
    return _bitmap(unshaped, character) != _bitmap(unshaped, _NO_CHARACTER)


@functools.lru_cache(maxsize=256)
def _unshaped(font: ImageFont.FreeTypeFont) -> ImageFont.FreeTypeFont:
    """The font without text shaping, which places a combining mark's missing glyph elsewhere."""
    return font.font_variant(layout_engine=ImageFont.Layout.BASIC)


def _bitmap(font: ImageFont.FreeTypeFont, character: str) -> bytes:
    mask: Any = font.getmask(character)  # Pillow's own image type, a buffer at run time only
    return bytes(mask)


def _search(character: str) -> tuple[str, int] | None:
    fonts = chain(_listed_by_fontconfig(character), _in_folders())
    for path, face in islice(fonts, MAX_FILES):
        font = open_font(path, face, 15)
        if font is not None and has_character(font, character):
            return path, face
    return None


def _listed_by_fontconfig(character: str) -> list[tuple[str, int]]:
    """Fonts that have the character, by `fc-list`, regular ones first; none where it is missing."""
    pattern = f":charset={ord(character):x}"
    command = ["fc-list", "--format", "%{file}\t%{index}\n", pattern]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=FC_LIST_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    fonts = []
    for line in done.stdout.splitlines():
        path, _, index = line.partition("\t")
        if index.isdecimal():
            fonts.append((path, int(index) & 0xFFFF))  # the upper bits name an instance
    return sorted(fonts, key=lambda font: ("Regular" not in font[0], font))


def _in_folders() -> Iterator[tuple[str, int]]:
    for folder in FOLDERS:
        for parent, _, names in sorted(os.walk(os.path.expanduser(folder))):
            for name in sorted(names):
                if Path(name).suffix.lower() in SUFFIXES:
                    yield str(Path(parent) / name), 0

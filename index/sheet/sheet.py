"""A contact sheet: hits as a picture, because people would rather look.

In come answers, out goes one RGB picture: for each answer the query, then its hits in rows with
rank, score and caption. Thumbnails are read from the shards by range, decoded no larger than shown,
and a picture that cannot be read leaves a tile that says why instead of ending the sheet.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from chiasm.index.query import encoded_picture
from chiasm.index.results import Answer, PictureSource, Result
from chiasm.index.sheet.typeface import Typeface
from chiasm.pipeline.errors import ChiasmError, StorageError, Undecodable
from chiasm.pipeline.images import DecodeSettings, decode
from chiasm.pipeline.storage import Folder

TILE = 240  # side of a thumbnail's tile, in pixels
GAP = 24
ACROSS = 5  # tiles in a row
CAPTION_LINES = 3
READERS = 8  # range reads at once: a far store answers slowly, not narrowly

PAPER, TILE_FILL, INK, FAINT, RULE = "#fbfbfa", "#efeeeb", "#1d1c1a", "#84807a", "#dcdad5"


def write_sheet(answers: Sequence[Answer], path: str | Path) -> None:
    """Draw the answers and write them as a PNG, whole or not at all. Raises StorageError."""
    target = Path(path)
    if target.exists() and not target.is_file():
        # Renamed into place, a sheet would take the place of a device or a pipe.
        raise StorageError(str(target), expected="a file to write", found="something else there")
    file = io.BytesIO()
    contact_sheet(answers).save(file, "PNG")
    Folder(str(target.parent)).write_whole(target.name, file.getvalue())


def contact_sheet(answers: Sequence[Answer], across: int = ACROSS) -> Image.Image:
    """The answers below each other, `across` hits in a row; as wide as the longest row needs."""
    longest = max((len(answer) for answer in answers), default=1)
    across = max(2, min(across, longest))
    pages = [Section(answer, across).draw() for answer in answers]
    width = GAP + across * (TILE + GAP)
    sheet = Image.new("RGB", (width, sum(page.height for page in pages) or TILE), PAPER)
    on = ImageDraw.Draw(sheet)
    top = 0
    for page in pages:
        if top:
            on.line([(GAP, top), (width - GAP, top)], fill=RULE)
        sheet.paste(page, (0, top + 1))
        top += page.height
    return sheet


class Section:
    """One answer on its strip of paper."""

    def __init__(self, answer: Answer, across: int) -> None:
        self.answer, self.across = answer, across
        self.width = GAP + across * (TILE + GAP)
        self.title, self.strong = Typeface(26, bold=True), Typeface(15, bold=True)
        self.plain, self.small = Typeface(15), Typeface(13)

    def draw(self) -> Image.Image:
        with ThreadPoolExecutor(READERS) as readers:
            tiles = list(readers.map(thumbnail, self.answer))
        rows = [
            list(zip(self.answer, tiles, strict=True))[start : start + self.across]
            for start in range(0, len(tiles), self.across)
        ]
        captions = {result.id: self._caption(result) for result in self.answer}
        heights = [
            TILE + 34 + self.plain.height * max(len(captions[hit.id][0]) for hit, _ in row) + GAP
            for row in rows
        ]
        asked = query_picture(self.answer.query.image)
        top = GAP + (TILE // 2 if asked else self.title.height + self.small.height) + GAP
        paper = Image.new("RGB", (self.width, top + sum(heights) + self.small.height), PAPER)
        on = ImageDraw.Draw(paper)
        self._head(paper, on, asked)
        for row, height in zip(rows, heights, strict=True):
            for place, (result, tile) in enumerate(row):
                self._cell(paper, on, (GAP + place * (TILE + GAP), top), result, tile, captions)
            top += height
        self._foot(on, top)
        return paper

    def _head(self, paper: Image.Image, on: ImageDraw.ImageDraw, asked: Image.Image | None) -> None:
        left = GAP
        if asked is not None:
            paper.paste(_on_tile(asked, TILE // 2), (GAP, GAP))
            left += TILE // 2 + GAP
        query = self.answer.query
        said = query.words or ("A picture" if query.image is not None else "A vector")
        shown = self.title.wrap(said, self.width - left - GAP, 1) or [self.answer.query.column]
        self.title.draw(on, (left, GAP), shown[0], INK)
        told = f"{len(self.answer)} results by {query.column}"
        spent = sum(took for stage, took in self.answer.seconds.items() if stage != "load")
        if spent:
            told += f", {1000 * spent:.0f} ms"
        self.small.draw(on, (left, GAP + self.title.height + 2), told, FAINT)

    def _cell(
        self,
        paper: Image.Image,
        on: ImageDraw.ImageDraw,
        at: tuple[int, int],
        result: Result,
        tile: Image.Image | str,
        captions: dict[str, tuple[list[str], str]],
    ) -> None:
        left, top = at
        paper.paste(self._tile(tile), at)
        line = top + TILE + 8
        self.strong.draw(on, (left, line), str(result.rank), INK)
        score = f"{result.score:.3f}"
        right = left + TILE - self.small.width(score)
        self.small.draw(on, (right, line + 2), score, FAINT)
        lines, ink = captions[result.id]
        for number, words in enumerate(lines):
            self.plain.draw(on, (left, line + 24 + number * self.plain.height), words, ink)

    def _tile(self, tile: Image.Image | str) -> Image.Image:
        if isinstance(tile, Image.Image):
            return _on_tile(tile, TILE)
        empty = Image.new("RGB", (TILE, TILE), TILE_FILL)
        on = ImageDraw.Draw(empty)
        lines = self.small.wrap(tile, TILE - 2 * GAP, 5)
        top = (TILE - len(lines) * self.small.height) / 2
        for number, line in enumerate(lines):
            left = (TILE - self.small.width(line)) / 2
            self.small.draw(on, (left, top + number * self.small.height), line, FAINT)
        return empty

    def _caption(self, result: Result) -> tuple[list[str], str]:
        """The caption's lines and their ink; the key, fainter, where no caption can be shown."""
        said = self.plain.wrap(result.caption or "", TILE, CAPTION_LINES)
        return (said, INK) if said else (self.plain.wrap(result.key, TILE, 1), FAINT)

    def _foot(self, on: ImageDraw.ImageDraw, top: int) -> None:
        if self.title.missing | self.plain.missing:
            told = "Letters left out: this computer has no font for them (try fonts-noto-cjk)"
            self.small.draw(on, (GAP, top - GAP / 2), told, FAINT)


def thumbnail(result: Result) -> Image.Image | str:
    """The hit's picture, no larger than a tile, or what is to be said in its place."""
    if result.place is None:
        return "a caption without a picture"
    try:
        return _small(result.picture())
    except ChiasmError as error:
        return str(error)
    except Undecodable as error:
        return f"{result.place.member}: {error.reason}"


def query_picture(source: PictureSource | None) -> Image.Image | None:
    return None if source is None else _small(encoded_picture(source))


def _small(data: bytes) -> Image.Image:
    image = decode(data, DecodeSettings(), TILE).image
    return ImageOps.contain(image, (TILE, TILE), Image.Resampling.LANCZOS)


def _on_tile(image: Image.Image, side: int) -> Image.Image:
    """The whole picture in the middle of a square."""
    return ImageOps.pad(image, (side, side), Image.Resampling.LANCZOS, color=TILE_FILL)

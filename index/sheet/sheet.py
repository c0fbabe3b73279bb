"""A contact sheet: answers as one picture.

For each answer the query, then its results in rows, each a thumbnail with rank, score and caption.
Thumbnails are read from the shards by range and decoded no larger than drawn; a picture that cannot
be read leaves a tile that says why instead of ending the sheet.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from chiasm.index.output_files import file_to_write
from chiasm.index.queries import PictureBytes, PictureSource, Query
from chiasm.index.query import encoded_picture, explain_picture
from chiasm.index.results import READERS, Answer, Result, shrink
from chiasm.index.sheet.heat import SIDE, explanation_sheet, heat_over
from chiasm.index.sheet.typeface import Typeface
from chiasm.pipeline.encoders import ExplainingEncoder, Explanation
from chiasm.pipeline.errors import ChiasmError, UsageError

LOG = logging.getLogger(__name__)
TILE = 240  # side of a thumbnail's tile, in pixels
GAP = 24
COLUMNS = 5  # tiles in a row
CAPTION_LINES = 3
NOTE_LINES = 2

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
MAX_SIDE = {"JPEG": 65_500, "WEBP": 16_383}  # pixels that the format can store
QUALITY = 90  # of JPEG and WebP

Line = tuple[Typeface, str, str]  # text in a typeface and a colour
PAPER, TILE_FILL, INK, FAINT, RULE = "#fbfbfa", "#efeeeb", "#1d1c1a", "#84807a", "#dcdad5"


@dataclass(frozen=True, slots=True)
class Heading:
    """What a sheet says of an answer in place of its query: a title and a line under it. notes: of
    each result, drawn under its picture above the caption."""

    title: str
    line: str
    notes: tuple[str, ...] = ()


def sheet_format(path: str | Path, name: str = "sheet") -> str:
    """Pillow's name of the format that the path's suffix asks for. Raises UsageError for another
    one; `name` says in it what the path is."""
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise UsageError(
            f"{name} {path}",
            expected="a name that ends in " + ", ".join(FORMATS),
            found=suffix or "no suffix",
        )
    return FORMATS[suffix]


def write_sheet(
    answers: Sequence[Answer],
    path: str | Path,
    explainer: ExplainingEncoder | None = None,
    headings: Sequence[Heading] = (),
) -> None:
    """Draw the answers and write them as PNG, JPEG or WebP by the path's suffix, whole or not at
    all. explainer, headings: see `contact_sheet`. Raises UsageError for another suffix and for a
    sheet too large for its format, StorageError where it cannot be written.
    """
    sheet_format(path)
    folder, name = file_to_write(str(path))
    drawn = contact_sheet(answers, explainer=explainer, headings=headings)
    folder.write_whole(name, _encoded(drawn, path))


def write_explanation(
    picture: PictureSource, text: str, explanation: Explanation, path: str | Path
) -> None:
    """Draw an explanation of a picture and a text, and write it as `write_sheet` does."""
    sheet_format(path)
    folder, name = file_to_write(str(path))
    thumbnail = shrink(encoded_picture(picture), SIDE)
    folder.write_whole(name, _encoded(explanation_sheet(thumbnail, text, explanation), path))


def _encoded(sheet: Image.Image, path: str | Path) -> bytes:
    form = sheet_format(path)
    if max(sheet.size) > MAX_SIDE.get(form, max(sheet.size)):
        raise UsageError(
            f"sheet {path}",
            expected=f"at most {MAX_SIDE[form]:,} pixels a side in {form}",
            found=f"{sheet.width:,} x {sheet.height:,}",
            do="write a .png, or draw fewer answers",
        )
    file = io.BytesIO()
    sheet.save(file, form, quality=QUALITY)
    return file.getvalue()


def contact_sheet(
    answers: Sequence[Answer],
    columns: int = COLUMNS,
    *,
    explainer: ExplainingEncoder | None = None,
    headings: Sequence[Heading] = (),
) -> Image.Image:
    """The answers below each other, `columns` results in a row; as wide as the longest row needs.
    explainer: lays over each picture the heat of the patches that its score with the query's text
    rests on; UsageError for a query without a text. headings: one an answer, or none."""
    longest = max((len(answer) for answer in answers), default=1)
    columns = max(2, min(columns, longest))
    sections = [
        Section(answer, columns, explainer, heading).draw()
        for answer, heading in zip(answers, headings or [None] * len(answers), strict=True)
    ]
    width = GAP + columns * (TILE + GAP)
    height = sum(section.height for section in sections) or TILE
    sheet = Image.new("RGB", (width, height), PAPER)
    canvas = ImageDraw.Draw(sheet)
    top = 0
    for section in sections:
        if top:
            canvas.line([(GAP, top), (width - GAP, top)], fill=RULE)
        sheet.paste(section, (0, top + 1))
        top += section.height
    return sheet


class Section:
    """The part of the sheet with one answer."""

    def __init__(
        self,
        answer: Answer,
        columns: int,
        explainer: ExplainingEncoder | None = None,
        heading: Heading | None = None,
    ) -> None:
        self.answer, self.columns, self.explainer = answer, columns, explainer
        self.heading = heading or self._of_query()
        self.width = GAP + columns * (TILE + GAP)
        self.title, self.bold = Typeface(26, bold=True), Typeface(15, bold=True)
        self.plain, self.small = Typeface(15), Typeface(13)

    def draw(self) -> Image.Image:
        with ThreadPoolExecutor(READERS) as readers:
            tiles = list(readers.map(lambda result: result.thumbnail(TILE), self.answer))
        if self.explainer is not None and tiles:
            tiles = explained_tiles(self.answer, tiles, self.explainer)
        rows = [
            list(zip(self.answer, tiles, strict=True))[start : start + self.columns]
            for start in range(0, len(tiles), self.columns)
        ]
        texts = {result.rank: self._texts(place) for place, result in enumerate(self.answer)}
        heights = [
            TILE + 34 + self.plain.height * max(len(texts[result.rank]) for result, _ in row) + GAP
            for row in rows
        ]
        picture = query_picture(self.answer.query.image)
        top = GAP + (TILE // 2 if picture else self.title.height + self.small.height) + GAP
        paper = Image.new("RGB", (self.width, top + sum(heights) + self.small.height), PAPER)
        canvas = ImageDraw.Draw(paper)
        self._draw_head(paper, canvas, picture)
        for row, height in zip(rows, heights, strict=True):
            for column, (result, tile) in enumerate(row):
                left = GAP + column * (TILE + GAP)
                self._draw_cell(paper, canvas, (left, top), result, tile, texts[result.rank])
            top += height
        self._draw_foot(canvas, top)
        return paper

    def _draw_head(
        self, paper: Image.Image, canvas: ImageDraw.ImageDraw, picture: Image.Image | None
    ) -> None:
        left = GAP
        if picture is not None:
            paper.paste(_pad_to_square(picture, TILE // 2), (GAP, GAP))
            left += TILE // 2 + GAP
        room, line = self.width - left - GAP, self.small.transliterated(self.heading.line)
        for text in self.title.wrap(self.title.transliterated(self.heading.title), room, 1):
            self.title.draw(canvas, (left, GAP), text, INK)
        for text in self.small.wrap(line, room, 1):
            self.small.draw(canvas, (left, GAP + self.title.height + 2), text, FAINT)

    def _of_query(self) -> Heading:
        query = self.answer.query
        unnamed = "A picture" if query.image is not None else "A vector"
        title = str(query) if query.terms or query.members else query.words or unnamed
        line = f"{len(self.answer)} results by {query.column}"
        if self.answer.seconds:
            line += f", {self.answer.time_label()}"
        if query.stages:
            line += ", reranked by " + ", then ".join(map(str, query.stages))
        return Heading(title, line)

    def _draw_cell(
        self,
        paper: Image.Image,
        canvas: ImageDraw.ImageDraw,
        at: tuple[int, int],
        result: Result,
        tile: Image.Image | str,
        texts: list[Line],
    ) -> None:
        left, top = at
        paper.paste(self._tile(tile), at)
        line = top + TILE + 8
        self.bold.draw(canvas, (left, line), str(result.rank), INK)
        score = self.answer.score_label(result)
        right = left + TILE - self.small.width(score)
        self.small.draw(canvas, (right, line + 2), score, FAINT)
        for number, (face, text, ink) in enumerate(texts):
            face.draw(canvas, (left, line + 24 + number * self.plain.height), text, ink)

    def _tile(self, tile: Image.Image | str) -> Image.Image:
        if isinstance(tile, Image.Image):
            return _pad_to_square(tile, TILE)
        empty = Image.new("RGB", (TILE, TILE), TILE_FILL)
        canvas = ImageDraw.Draw(empty)
        lines = self.small.wrap(tile, TILE - 2 * GAP, 5)
        top = (TILE - len(lines) * self.small.height) / 2
        for number, line in enumerate(lines):
            left = (TILE - self.small.width(line)) / 2
            self.small.draw(canvas, (left, top + number * self.small.height), line, FAINT)
        return empty

    def _texts(self, place: int) -> list[Line]:
        """The lines under a result: its note, if it has one, and its caption; the key, fainter,
        where no caption can be drawn."""
        result, noted = self.answer[place], []
        if self.heading.notes:
            note = self.bold.wrap(self.heading.notes[place], TILE, NOTE_LINES)
            noted = [(self.bold, line, INK) for line in note]
        lines, ink = self.plain.wrap(result.caption or "", TILE, CAPTION_LINES), INK
        if not lines:
            lines, ink = self.plain.wrap(result.key, TILE, 1), FAINT
        return noted + [(self.plain, line, FAINT if noted else ink) for line in lines]

    def _draw_foot(self, canvas: ImageDraw.ImageDraw, top: int) -> None:
        if self.title.missing | self.plain.missing | self.bold.missing:
            note = "No font here has some of the characters; for Chinese install fonts-noto-cjk"
            self.small.draw(canvas, (GAP, top - GAP / 2), note, FAINT)


def explained_tiles(
    answer: Answer, tiles: Sequence[Image.Image | str], explainer: ExplainingEncoder
) -> list[Image.Image | str]:
    """The tiles with heat over those that are pictures; the pictures are read again one by one, as
    large as the model takes them. A tile whose picture fails stays as it is."""
    text = text_to_explain(answer.query)
    drawn = list(tiles)
    for place, tile in enumerate(tiles):
        if not isinstance(tile, Image.Image):
            continue
        result = answer[place]
        try:
            picture = PictureBytes(result.picture(), result.key)
            drawn[place] = heat_over(tile, explain_picture(picture, text, explainer))
        except ChiasmError as error:
            LOG.warning("not explained: %s", error)
    return drawn


def text_to_explain(query: Query) -> str:
    """The text of a query; UsageError for one without."""
    if not query.text:
        raise UsageError(
            f"explaining the results of {query}",
            expected="a query by one text",
            found="a picture, a vector or weighted terms",
        )
    return query.text


def query_picture(source: PictureSource | None) -> Image.Image | None:
    """The query's picture, no larger than a tile."""
    return None if source is None else shrink(encoded_picture(source), TILE)


def _pad_to_square(image: Image.Image, side: int) -> Image.Image:
    """The whole picture in the middle of a square."""
    return ImageOps.pad(image, (side, side), Image.Resampling.LANCZOS, color=TILE_FILL)

"""What the commands that answer are asked: a picture, a text or both, given or read from stdin."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from chiasm.index.ask import BATCH
from chiasm.jobs.console import lines_of, shortened
from chiasm.pipeline.encoders import TASKS
from chiasm.pipeline.errors import ChiasmError, UsageError
from chiasm.pipeline.records import IMAGE, TEXT

STDIN = "-"
DRAWINGS = (".png", ".jpg", ".jpeg", ".webp")
TEXT_NAMES = {"ask": "question"}  # what the text is called, where it is not `text`


@dataclass(frozen=True, slots=True)
class Item:
    """One input: a picture's path or URL, a text, or both; or why the line of stdin is none. label:
    what of it differs from input to input, for errors. is_pair: picture and text both differ."""

    label: str
    image: str | None = None
    text: str | None = None
    error: ChiasmError | None = None
    is_pair: bool = False

    @property
    def name(self) -> str:
        """For messages: the picture's path whole, of a long text the beginning."""
        text = shortened(self.text or "")
        if self.is_pair:
            return f"{self.image}\t{text}"
        return text if self.label == self.text else self.label

    @property
    def columns(self) -> list[str]:
        """What differs, for the line of the output."""
        return [self.image or "", self.text or ""] if self.is_pair else [self.label]


@dataclass(frozen=True, slots=True)
class Inputs:
    """Batches of items, and whether there are several: then one that fails does not end the
    others."""

    batches: Iterator[list[Item]]
    several: bool


def text_name(task: str) -> str:
    return TEXT_NAMES.get(task, TEXT)


def read_inputs(task: str, images: Sequence[str], text: str | None) -> Inputs:
    """The inputs of a command. `-` for the picture or the text: a line of stdin each, with the
    other as given; for both, or where the other is not given: a pair a line, as a JSON object with
    both or with a tab between them. task: of TASKS, or a command that takes a picture and a text.
    Raises UsageError where something is missing, and for a blank text."""
    needs = TASKS.get(task, (IMAGE, TEXT))
    pictures = [image for image in images if image != STDIN]
    lines = len(pictures) < len(images) or text == STDIN
    words = None if text == STDIN else text
    given = ((IMAGE, pictures), (TEXT, words))
    lacking = [name for name, values in given if name in needs and not values]
    if text is not None and not text.strip():
        raise UsageError(task, expected=f"a {text_name(task)}", found="a blank one")
    if lines and pictures and (lacking != [TEXT] or len(pictures) > 1):
        raise UsageError(task, expected="pictures, or - alone", found="both")
    if lacking and not lines:
        names = " and ".join(text_name(task) if name == TEXT else "picture" for name in lacking)
        do = "name it with --image" if IMAGE in lacking else ""
        raise UsageError(task, expected=f"a {names}, or - to read stdin", found="none", do=do)
    if not lines:
        items = [_item(image, words) for image in pictures or [None]]
        return Inputs(_batches(iter([items])), len(items) > 1)
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError(task, expected="lines on stdin, as - says", found="none")
    return Inputs(_batches(_from_lines(task, lacking, pictures, words)), True)


def _from_lines(
    task: str, lacking: Sequence[str], pictures: Sequence[str], words: str | None
) -> Iterator[list[Item]]:
    """The items of the lines of stdin, as they arrive. Empty lines are none."""
    assert sys.stdin is not None
    errors = "replace" if lacking == [TEXT] else "surrogateescape"  # a path may have any bytes
    number = 0
    for lines in lines_of(sys.stdin.fileno(), errors):
        items = []
        for line in map(str.strip, lines):
            number += 1
            if not line:
                continue
            if len(lacking) == 2:
                items.append(_pair(line, f"line {number} of stdin", text_name(task)))
            elif lacking == [IMAGE]:
                items.append(Item(line, line, words))
            else:
                items.append(Item(line, pictures[0] if pictures else None, line))
        yield items


def _pair(line: str, place: str, name: str) -> Item:
    """A picture and a text: a JSON object, or two columns with a tab between them."""
    if line.startswith("{"):
        try:
            fields: Any = json.loads(line)
        except (ValueError, RecursionError):
            fields = {}
        image, text = fields.get(IMAGE), fields.get(name)
    else:
        image, _, text = (part.strip() for part in line.partition("\t"))
        image = image if text else None
    if isinstance(image, str) and isinstance(text, str):
        error = None
        if not text.strip():
            error = UsageError(place, expected=f"a {name}", found="a blank one")
        return Item(f"{image}\t{text}", image, text, error, is_pair=True)
    expected = f'a JSON object with "{IMAGE}" and "{name}", or the two with a tab between them'
    return Item(place, error=UsageError(place, expected=expected, found=line[:80]))


def _item(image: str | None, text: str | None) -> Item:
    return Item(text or "" if image is None else image, image, text)


def _batches(arrived: Iterator[list[Item]]) -> Iterator[list[Item]]:
    for items in arrived:
        for start in range(0, len(items), BATCH):
            yield items[start : start + BATCH]


def file_of(folder: str, number: int) -> str:
    """The path of a drawing of several, in their folder; UsageError for an empty name, and for a
    folder that is named like a picture: it was meant for one."""
    if not folder.strip():
        raise UsageError("-o", expected="a folder", found="an empty name", do="for this one give .")
    if folder.lower().endswith(DRAWINGS):
        raise UsageError(
            folder,
            expected="a folder, as there may be several pictures",
            found="the name of a picture",
            do="leave the suffix out",
        )
    return f"{folder.rstrip('/')}/{number:06d}.png"


def one_text(task: str, words: Sequence[str], do: str = "put the words in quotes") -> str | None:
    """The text of the command line; UsageError for words that the shell has split, with what to
    do."""
    if len(words) > 1:
        raise UsageError(
            text_name(task).upper(),
            expected="one text",
            found=f"{len(words)} words",
            do=do,
        )
    return words[0] if words else None

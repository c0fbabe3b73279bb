"""`chiasm translate`."""

from __future__ import annotations

from typing import Annotated

import typer

from chiasm.jobs.cli.answer_inputs import one_text, read_inputs
from chiasm.jobs.cli.answering import (
    PICTURE_HELP,
    Answering,
    AsJson,
    Beams,
    MaxTokens,
    Model,
    Precision,
    answer_inputs,
)
from chiasm.jobs.cli.options import Assignments, Device, Preset

HELP = """
  chiasm translate "a crane by the river" --image river.png --to zh
  chiasm translate - --image river.png --to zh < texts.txt
  chiasm translate - --to en --json < pairs.jsonl

Translates a text that belongs to a picture, which settles what an ambiguous word means. Without a
picture, stdin has a JSON object a line with "image" and "text"."""


def translate(
    words: Annotated[
        list[str], typer.Argument(metavar="TEXT", help="In quotes; - reads lines of stdin.")
    ],
    to: Annotated[str, typer.Option(help="The language of the translation: en or zh.")],
    image: Annotated[str | None, typer.Option(help=PICTURE_HELP)] = None,
    model: Model = "pocket",
    beams: Beams = 1,
    max_tokens: MaxTokens = None,
    as_json: AsJson = False,
    device: Device = None,
    precision: Precision = None,
    preset: Preset = "laptop",
    assignments: Assignments = None,
) -> None:
    options = Answering(
        model, to, beams, max_tokens, as_json, device, precision, preset, assignments
    )
    text = one_text("translate", words)
    answer_inputs("translate", read_inputs("translate", [image] if image else [], text), options)

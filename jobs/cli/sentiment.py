"""`chiasm sentiment`."""

from __future__ import annotations

from typing import Annotated

import typer

from chiasm.jobs.cli.answer_inputs import one_text, read_inputs
from chiasm.jobs.cli.answering import (
    PICTURE_HELP,
    Answering,
    AsJson,
    Beams,
    Language,
    MaxTokens,
    Model,
    Precision,
    answer_inputs,
)
from chiasm.jobs.cli.options import Assignments, Device, Preset

HELP = """
  chiasm sentiment "what a wonderful day" --image rain.png
  chiasm sentiment - --json < pairs.jsonl

Says what sentiment a text and its picture have together: neither alone need show it. Without a
picture, stdin has a JSON object a line with "image" and "text"."""


def sentiment(
    words: Annotated[
        list[str], typer.Argument(metavar="TEXT", help="In quotes; - reads lines of stdin.")
    ],
    image: Annotated[str | None, typer.Option(help=PICTURE_HELP)] = None,
    model: Model = "pocket",
    language: Language = None,
    beams: Beams = 1,
    max_tokens: MaxTokens = None,
    as_json: AsJson = False,
    device: Device = None,
    precision: Precision = None,
    preset: Preset = "laptop",
    assignments: Assignments = None,
) -> None:
    options = Answering(
        model, language, beams, max_tokens, as_json, device, precision, preset, assignments
    )
    text = one_text("sentiment", words)
    answer_inputs("sentiment", read_inputs("sentiment", [image] if image else [], text), options)

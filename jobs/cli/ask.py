"""`chiasm ask`."""

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
  chiasm ask boat.png "what colour is the boat?"
  chiasm ask - "is there a boat?" < pictures.txt
  chiasm ask boat.png - < questions.txt
  chiasm ask - --json < pairs.jsonl

Answers a question about a picture. Without a question, stdin has a JSON object a line with "image"
and "question"."""


def ask(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help=PICTURE_HELP)],
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[QUESTION]", help="In quotes; - reads lines of stdin."),
    ] = None,
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
    answer_inputs("ask", read_inputs("ask", [image], one_text("ask", words or [])), options)

"""`chiasm caption`."""

from __future__ import annotations

from typing import Annotated

import typer

from chiasm.jobs.cli.answer_inputs import read_inputs
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
  chiasm caption boat.png
  chiasm caption *.png --language zh --json
  chiasm caption - --model hf:ID_OR_DIR < pictures.txt

Says in a sentence what a picture shows. Several pictures give a line each: the picture, a tab, its
caption."""


def caption(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help=PICTURE_HELP)],
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
    answer_inputs("caption", read_inputs("caption", images, None), options)

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
from chiasm.jobs.cli.ask_collection import (
    About,
    CollectionOptions,
    FalseAlarms,
    SheetFile,
    Sources,
    Where,
    answer_from_collection,
    is_collection,
)
from chiasm.jobs.cli.options import Assignments, Device, Preset

HELP = """
  chiasm ask boat.png "what colour is the boat?"
  chiasm ask - "is there a boat?" < pictures.txt
  chiasm ask boat.png - < questions.txt
  chiasm ask - --json < pairs.jsonl
  chiasm ask photos.chiasm "what colour is the boat?" -k 3 --sheet asked.png

Answers a question about a picture, or about a collection: then pictures are searched for, each is
asked, the answer is that of the first, and all are named. Where nothing matches, nothing is
answered. Without a question, stdin has a JSON object a line with "image"
and "question"."""


def ask(
    image: Annotated[str, typer.Argument(metavar="IMAGE|COLLECTION", help=PICTURE_HELP)],
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[QUESTION]", help="In quotes; - reads lines of stdin."),
    ] = None,
    model: Model = "pocket",
    language: Language = None,
    beams: Beams = 1,
    max_tokens: MaxTokens = None,
    as_json: AsJson = False,
    k: Sources = None,
    about: About = None,
    where: Where = None,
    false_alarms: FalseAlarms = None,
    sheet: SheetFile = None,
    device: Device = None,
    precision: Precision = None,
    preset: Preset = "laptop",
    assignments: Assignments = None,
) -> None:
    options = Answering(
        model, language, beams, max_tokens, as_json, device, precision, preset, assignments
    )
    of_collection = CollectionOptions(k, about, where, false_alarms, sheet)
    question = one_text("ask", words or [])
    if image != "-" and is_collection(image):
        answer_from_collection(image, question, of_collection, options)
        return
    of_collection.require_none()
    answer_inputs("ask", read_inputs("ask", [image], question), options)

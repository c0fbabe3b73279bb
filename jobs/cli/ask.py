"""`chiasm ask`."""

from __future__ import annotations

import os
from dataclasses import replace
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
from chiasm.jobs.cli.answering_shards import (
    Address,
    AllowDamaged,
    AllowQuery,
    MaxLoss,
    ShardOptions,
    To,
    answer_command_shards,
    require_no_folders,
    require_no_shards,
)
from chiasm.jobs.cli.ask_collection import (
    About,
    CollectionEncoder,
    CollectionOptions,
    ExplainHits,
    FalseAlarms,
    SheetFile,
    Sources,
    Where,
    answer_from_collection,
    is_collection,
)
from chiasm.jobs.cli.options import Assignments, Device, Preset
from chiasm.pipeline.encoders import language_of
from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.shards import TAR_SUFFIXES

HELP = """
  chiasm ask boat.png "what colour is the boat?"
  chiasm ask - "is there a boat?" < pictures.txt
  chiasm ask boat.png - < questions.txt
  chiasm ask - --json < pairs.jsonl
  chiasm ask photos.chiasm "what colour is the boat?" -k 3 --sheet asked.png
  chiasm ask photos.chiasm "what is it doing?" --about "a dog on a beach"
  chiasm ask 'crawled/*.tar' "is there a boat?" --to boats

Answers a question about a picture or a collection. In a collection, it searches for pictures by
what the question is about and asks each of them. It gives the first answer and names every picture;
where nothing matches, it gives none. Without a question, stdin has a pair a line: a JSON object
with "image" and "question", or the two with a tab between them.

With --to, the question is the last argument, and those before it are WebDataset tars: it is
asked about every picture of theirs, and the answers are in FOLDER/answers/SHARD.parquet. Kill it
and run it again: what is done is skipped. With --address, or more than one worker in the settings,
it runs on Ray."""


def ask(
    image: Annotated[str, typer.Argument(metavar="IMAGE|COLLECTION|SHARDS...", help=PICTURE_HELP)],
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
    explain_hits: ExplainHits = False,
    encoder: CollectionEncoder = None,
    device: Device = None,
    precision: Precision = None,
    preset: Preset = "laptop",
    assignments: Assignments = None,
    to: To = None,
    address: Address = None,
    max_loss: MaxLoss = None,
    allow_damaged: AllowDamaged = False,
    allow_query: AllowQuery = False,
) -> None:
    options = Answering(
        model, language, beams, max_tokens, as_json, device, precision, preset, assignments
    )
    about_shards = ShardOptions(False, address, max_loss, allow_damaged, allow_query)
    of_collection = CollectionOptions(k, about, where, false_alarms, sheet, explain_hits, encoder)
    if to is not None:
        of_collection.require_none("shards")
        *shards, question = [image, *(words or [])]
        _require_question(shards, question)
        options = replace(options, language=language or language_of(question))
        answer_command_shards("ask", shards, to, options, about_shards, question)
        return
    about_shards.require_none()
    _require_one_picture(image, words or [])
    question = one_text("ask", words or [])
    if image != "-" and is_collection(image):
        answer_from_collection(image, question, of_collection, options)
        return
    of_collection.require_none("a picture")
    require_no_folders([image], "a picture or a collection")
    answer_inputs("ask", read_inputs("ask", [image], question), options)


def _require_one_picture(image: str, words: list[str]) -> None:
    """UsageError for shards, and where files follow the first one, as of a glob without quotes."""
    require_no_shards([image], "a picture and a question")
    require_no_shards(words, "a picture and a question", texts=True)
    more = [name for name in words if os.path.isfile(name)]
    if more:
        raise UsageError(
            "ask",
            expected="one picture, then a question",
            found=f"a file, {more[-1]}",
            do="give several pictures on stdin, a line each: chiasm ask - QUESTION",
        )


def _require_question(shards: list[str], question: str) -> None:
    """UsageError where the last argument is none: a glob without quotes takes its place."""
    found = None
    if not shards:
        found = "no question"
    elif not question.strip() or question == "-":
        found = f"{question!r}"
    elif question.lower().endswith(TAR_SUFFIXES) or os.path.exists(question):
        found = f"a file, {question}"
    if found is not None:
        raise UsageError(
            "ask",
            expected="shards, then a question",
            found=found,
            do="end with a question in quotes",
        )

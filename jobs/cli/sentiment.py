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
from chiasm.jobs.cli.answering_shards import (
    Address,
    AllowDamaged,
    AllowQuery,
    MaxLoss,
    ShardOptions,
    To,
    answer_command_shards,
    require_no_shards,
)
from chiasm.jobs.cli.options import Assignments, Device, Preset
from chiasm.pipeline.errors import UsageError

HELP = """
  chiasm sentiment "what a wonderful day" --image rain.png
  chiasm sentiment - --json < pairs.jsonl
  chiasm sentiment 'crawled/*.tar' --to moods

Says what sentiment a text and its picture have together: neither alone need show it. Without a
picture, stdin has both in each line: a JSON object with "image" and "text", or the two with a tab
between them.

With --to, SHARDS are WebDataset tars: every caption of theirs is taken with its picture, and the
answers are in FOLDER/answers/SHARD.parquet. Kill it and run it again: what is done is skipped. With
--address, or more than one worker in the settings, it runs on Ray."""


def sentiment(
    words: Annotated[
        list[str],
        typer.Argument(metavar="TEXT|SHARDS...", help="In quotes; - reads lines of stdin."),
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
    if to is not None:
        if image is not None:
            raise UsageError("--image", expected="none with shards, which have their own")
        answer_command_shards("sentiment", words, to, options, about_shards)
        return
    about_shards.require_none()
    require_no_shards(words, "a text", texts=True)
    text = one_text("sentiment", words)
    answer_inputs("sentiment", read_inputs("sentiment", [image] if image else [], text), options)

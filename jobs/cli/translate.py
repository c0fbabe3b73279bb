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
from chiasm.jobs.cli.answering_shards import (
    PANEL,
    Address,
    AllowDamaged,
    AllowQuery,
    MaxLoss,
    ShardOptions,
    answer_command_shards,
    require_no_shards,
)
from chiasm.jobs.cli.options import Assignments, Device, Preset
from chiasm.pipeline.encoders import LANGUAGES
from chiasm.pipeline.errors import UsageError

HELP = """
  chiasm translate "a crane by the river" --image river.png --to zh
  chiasm translate - --image river.png --to zh < texts.txt
  chiasm translate - --to en --json < pairs.jsonl
  chiasm translate 'crawled/*.tar' --language zh --to chinese

Translates a text that belongs to a picture, which settles what an ambiguous word means. Without a
picture, stdin has both in each line: a JSON object with "image" and "text", or the two with a tab
between them.

With --language, SHARDS are WebDataset tars and --to is a folder: every caption of theirs is
translated by its picture, into FOLDER/answers/SHARD.parquet. Kill it and run it again: what is
done is skipped. With --address, or more than one worker in the settings, it runs on Ray."""


def translate(
    words: Annotated[
        list[str],
        typer.Argument(metavar="TEXT|SHARDS...", help="In quotes; - reads lines of stdin."),
    ],
    to: Annotated[
        str,
        typer.Option(help="The language of the translation: en or zh; of shards: a folder."),
    ],
    image: Annotated[str | None, typer.Option(help=PICTURE_HELP)] = None,
    model: Model = "pocket",
    beams: Beams = 1,
    max_tokens: MaxTokens = None,
    as_json: AsJson = False,
    device: Device = None,
    precision: Precision = None,
    preset: Preset = "laptop",
    assignments: Assignments = None,
    language: Annotated[
        str | None,
        typer.Option(help="Of the translations of shards: en or zh.", rich_help_panel=PANEL),
    ] = None,
    address: Address = None,
    max_loss: MaxLoss = None,
    allow_damaged: AllowDamaged = False,
    allow_query: AllowQuery = False,
) -> None:
    about_shards = ShardOptions(False, address, max_loss, allow_damaged, allow_query)
    if language is not None:
        if to in LANGUAGES:
            raise UsageError(f"--to {to}", expected="a folder, with --language", found="a language")
        if image is not None:
            raise UsageError("--image", expected="none with shards, which have their own")
        options = Answering(
            model, language, beams, max_tokens, as_json, device, precision, preset, assignments
        )
        answer_command_shards("translate", words, to, options, about_shards)
        return
    about_shards.require_none()
    do = "for shards add --language en or zh, and name a folder with --to"
    require_no_shards(words, "a text", do, texts=True)
    options = Answering(
        model, to, beams, max_tokens, as_json, device, precision, preset, assignments
    )
    text = one_text("translate", words)
    answer_inputs("translate", read_inputs("translate", [image] if image else [], text), options)

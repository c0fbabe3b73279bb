"""`chiasm caption`."""

from __future__ import annotations

from dataclasses import replace
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
from chiasm.jobs.cli.answering_shards import (
    Address,
    AllowDamaged,
    AllowQuery,
    MaxLoss,
    ShardOptions,
    To,
    WriteShards,
    answer_command_shards,
    require_no_folders,
    require_no_shards,
)
from chiasm.jobs.cli.options import Assignments, Device, Preset

HELP = """
  chiasm caption boat.png
  chiasm caption *.png --language zh --json
  chiasm caption - --model hf:ID_OR_DIR < pictures.txt
  chiasm caption 'crawled/*.tar' --to captioned --shards --model hf:ID_OR_DIR

Says in a sentence what a picture shows. Several pictures give a line each: the picture, a tab, its
caption.

With --to, SHARDS are WebDataset tars: every picture of theirs gets a caption, in
FOLDER/answers/SHARD.parquet. --shards writes FOLDER/shards/SHARD.tar, too: a sample without a
caption gets a txt; json gets every new caption as generated_caption_en (or _zh). Nothing is
overwritten. Kill it and run it again: what is done is skipped. With --address, or more than one
worker in the settings, it runs on Ray."""


def caption(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...|SHARDS...", help=PICTURE_HELP)],
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
    write_shards: WriteShards = False,
    address: Address = None,
    max_loss: MaxLoss = None,
    allow_damaged: AllowDamaged = False,
    allow_query: AllowQuery = False,
) -> None:
    options = Answering(
        model, language, beams, max_tokens, as_json, device, precision, preset, assignments
    )
    about_shards = ShardOptions(write_shards, address, max_loss, allow_damaged, allow_query)
    if to is not None:
        options = replace(options, language=language or "en")
        answer_command_shards("caption", images, to, options, about_shards)
        return
    about_shards.require_none()
    require_no_shards(images, "a picture")
    require_no_folders(images)
    answer_inputs("caption", read_inputs("caption", images, None), options)

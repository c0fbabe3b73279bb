"""`chiasm filter`."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from chiasm.jobs.cli.options import (
    ENCODING,
    MATCHER_HELP,
    Address,
    AllowQuery,
    Assignments,
    CaptionField,
    Device,
    Preset,
    Shards,
    list_command_shards,
    print_progress,
)
from chiasm.jobs.config import compose
from chiasm.jobs.console import json_line, printable
from chiasm.jobs.filter_shards import USES, FilterRequest, FilterSummary, filter_shards
from chiasm.pipeline.errors import ChiasmError, UsageError

HELP = """
  chiasm filter 'crawled/*.tar' --to cleaned --encoder two-tower:mine
  chiasm filter 'crawled/*.tar' --to cleaned --encoder two-tower:mine --drop 0.3

A model that matches scores every caption with its picture: txt, and json's caption and captions, as
chiasm train two-tower takes them. With --caption-field only the captions of that json field are
judged, txt where a sample has none there; its other captions pass. What falls below the threshold
is left out of the shards written, or, with --flag, marked in their json; a sample without a caption
left is left out whole. Nothing is written where nearly all captions would go (filter.max_noisy);
--drop and --flag are not checked for that. Beside each shard lies SHARD.scores.jsonl with every
score. What was scored is not scored again: try other thresholds at no cost. A CrossEncoder has a
scale of its own: give --threshold or --drop.

With --address, or more than one worker in the settings, shards are scored and written on Ray."""


def filter_(
    shards: Shards,
    to: Annotated[str, typer.Option(help="Folder of the shards written.")],
    encoder: Annotated[
        str,
        typer.Option(help=f"{MATCHER_HELP} Or st:ID_OR_DIR of a CrossEncoder that takes pictures."),
    ],
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Score (log odds of chiasm's models) that a caption must reach. (default: 0)"
        ),
    ] = None,
    drop: Annotated[
        float | None, typer.Option(help="Share of all captions to drop, in place of a threshold.")
    ] = None,
    flag: Annotated[bool, typer.Option("--flag", help="Keep all, and mark the noisy.")] = False,
    caption_field: CaptionField = None,
    device: Device = None,
    preset: Preset = "laptop",
    assignments: Assignments = None,
    address: Address = None,
    allow_query: AllowQuery = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    if threshold is not None and drop is not None:
        raise UsageError("--threshold and --drop", expected="one of them", found="both")
    settings = compose(preset, assignments or (), {
        "filter.threshold": threshold, "filter.drop": drop, "filter.flag": flag or None,
        "read.caption_field": caption_field, "encoder.device": device,
    }, uses=(*ENCODING, *USES))  # fmt: skip
    shard_list = list_command_shards(shards, allow_query)
    request = FilterRequest(shard_list, to, encoder, settings, address)
    with contextlib.redirect_stdout(sys.stderr):  # what Ray prints is no result
        summary = filter_shards(request, print_progress)
    if as_json:
        found = {"threshold": summary.threshold, "flag": settings.filter.flag}
        print(json_line(found | asdict(summary.counts)))
    else:
        for line in format_summary(summary, settings.filter.flag, to):
            print(printable(line))
    _require_whole(summary, len(shard_list))


def _require_whole(summary: FilterSummary, shards: int) -> None:
    """ChiasmError where a shard was cut or damaged."""
    if summary.counts.damaged:
        raise ChiasmError(
            f"{summary.counts.damaged} of {shards} shards",
            expected="whole tar files",
            found="some that are cut or damaged: what came before is filtered, the rest is lost",
            do="fetch them again and run this once more; chiasm embed names them, and where",
        )


def format_summary(summary: FilterSummary, flag: bool, to: str) -> list[str]:
    """The summary in lines for a person."""
    counts = summary.counts
    share = counts.noisy / max(1, counts.captions)
    what = "marked" if flag else "left out"
    lines = [
        f"{counts.captions:,} captions scored, {counts.noisy:,} ({share:.1%}) below log odds "
        f"{summary.threshold:.2f} {what}",
        f"{counts.samples - counts.left_out:,} of {counts.samples:,} samples in {to}",
    ]
    if counts.unscored:
        lines.append(f"{counts.unscored:,} without picture, caption or score passed as they are")
    if counts.oversized:
        lines.append(f"{counts.oversized:,} members above read.max_member_bytes left out")
    return lines

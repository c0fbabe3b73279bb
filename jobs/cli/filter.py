"""`chiasm filter`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from typing import Annotated

import typer

from chiasm.pipeline.caption_filter import (
    Filtered,
    FilterSettings,
    score_shard,
    threshold_of,
    write_filtered,
)
from chiasm.pipeline.collection import Run
from chiasm.pipeline.encoders import load_encoder, require_matcher
from chiasm.pipeline.errors import ChiasmError, UsageError
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.shards import ReadSettings, list_shards
from chiasm.pipeline.storage import Folder

HELP = """Leave out captions that do not tell of their pictures.

  chiasm filter crawled/*.tar --to cleaned --encoder two-tower:mine

  chiasm filter crawled/*.tar --to cleaned --encoder two-tower:mine --drop 0.3

A model that matches scores every caption with its picture. What falls below the threshold is left
out of the shards written, or, with --flag, marked in their json; a sample without a caption left is
left out whole. Beside each shard lies SHARD.scores.jsonl with every score. What was scored is not
scored again: try other thresholds at no cost."""


def register(app: typer.Typer) -> None:
    app.command("filter", help=HELP)(filter_)


def filter_(
    shards: Annotated[list[str], typer.Argument(metavar="SHARDS...", help="WebDataset tars.")],
    to: Annotated[str, typer.Option(help="Folder of the shards written.")],
    encoder: Annotated[
        str, typer.Option(help="A model that matches: pocket, pocket:DIR or two-tower:DIR.")
    ] = "pocket",
    threshold: Annotated[
        float | None, typer.Option(help="Log odds that a caption must reach. [default: 0]")
    ] = None,
    drop: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of all captions to drop, in place of a threshold."),
    ] = None,
    flag: Annotated[bool, typer.Option("--flag", help="Keep all, and mark the noisy.")] = False,
    caption_field: Annotated[
        str, typer.Option(help="Take captions from this json field, before txt.")
    ] = "",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    if threshold is not None and drop is not None:
        raise UsageError("--threshold and --drop", expected="one of them", found="both")
    listed = list_shards(shards, sys.stdin)
    if not listed:
        raise UsageError("SHARDS", expected="at least one shard", found="an empty list on stdin")
    model = require_matcher(load_encoder(encoder, EncoderSettings(device=device)))
    settings = FilterSettings(threshold or 0.0, flag, ReadSettings(caption_field=caption_field))
    folder = Folder(to)
    with Run(folder, "filter", {"encoder": model.name, "drop": drop, **asdict(settings)}) as run:
        run.sweep([""])
        scores = []
        for number, shard in enumerate(listed, 1):
            scores.append(score_shard(shard, model, settings.read, folder, run.id))
            print(f"scored {number} of {len(listed)} shards", file=sys.stderr, flush=True)
        if drop is not None:
            lowest = threshold_of([each for some in scores for each in some], drop)
            settings = replace(settings, threshold=lowest)
        counts = Filtered()
        for shard, some in zip(listed, scores, strict=True):
            counts += write_filtered(shard, some, settings, folder, run.id)
        run.finish("done", asdict(counts))
    if as_json:
        print(json.dumps({"threshold": settings.threshold, "flag": flag, **asdict(counts)}))
    else:
        print("\n".join(told(counts, settings, to)))
    _require_whole(counts, len(listed))


def _require_whole(counts: Filtered, shards: int) -> None:
    """ChiasmError where a shard was cut or damaged."""
    if counts.damaged:
        raise ChiasmError(
            f"{counts.damaged} of {shards} shards",
            expected="whole tar files",
            found="some that are cut or damaged: what came before is filtered, the rest is lost",
            do="fetch them again and run this once more; chiasm embed tells which and where",
        )


def told(counts: Filtered, settings: FilterSettings, to: str) -> list[str]:
    """The summary in lines for a person."""
    share = counts.noisy / max(1, counts.captions)
    what = "marked" if settings.flag else "left out"
    lines = [
        f"{counts.captions:,} captions scored, {counts.noisy:,} ({share:.1%}) below log odds "
        f"{settings.threshold:.2f} {what}",
        f"{counts.samples - counts.left_out:,} of {counts.samples:,} samples in {to}",
    ]
    if counts.unscored:
        lines.append(f"{counts.unscored:,} without picture or caption passed as they are")
    return lines

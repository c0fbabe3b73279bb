"""`chiasm embed`."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Annotated

import typer
from rich.console import Console

from chiasm.jobs.config import compose
from chiasm.jobs.console import printable, showing
from chiasm.jobs.embed_shards import EmbedRequest, EmbedSummary, embed_shards, summary_error
from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.records import Shard
from chiasm.pipeline.shards import list_shards
from chiasm.pipeline.storage import display_name

HELP = """Embed shards into a collection, on this machine or a cluster.

SHARDS are paths, folders, globs, brace ranges, or - for a list on stdin:

  chiasm embed photos/*.tar --to photos.chiasm

  chiasm embed 'laion/{00000..00099}.tar' --to laion --encoder hf:google/siglip2-base-patch16-224

Kill it and run it again: what is done is passed over. More shards can be added to a collection."""
MOST_LISTED = 20  # dropped samples told one by one


def register(app: typer.Typer) -> None:
    app.command("embed", help=HELP)(embed)


def embed(
    shards: Annotated[list[str], typer.Argument(metavar="SHARDS...", help="WebDataset tars.")],
    to: Annotated[str, typer.Option(help="The collection's folder.")],
    encoder: Annotated[
        str | None,
        typer.Option(help="pocket, hf:ID_OR_DIR, st:ID_OR_DIR or two-tower:DIR. [default: pocket]"),
    ] = None,
    preset: Annotated[
        str, typer.Option(help="laptop, one_gpu, cluster, or a YAML file of settings.")
    ] = "laptop",
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="One setting, as in batch.size=32."),
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="A running Ray: host:port or auto. [default: start one here]")
    ] = None,
    caption_field: Annotated[
        str | None, typer.Option(help="Take captions from this json field, before txt.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Embed the first N samples only.")
    ] = None,
    max_loss: Annotated[
        float | None, typer.Option(help="Share of samples that may be dropped. [default: 0.01]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    flags = {"encoder.name": encoder, "read.caption_field": caption_field, "max_loss": max_loss}
    request = EmbedRequest(
        shards=_listed(shards),
        to=to,
        settings=compose(preset, assignments or (), flags),
        address=address,
        limit=limit,
    )
    # What Ray prints of its processes is no result, though it goes to stdout.
    with contextlib.redirect_stdout(sys.stderr), showing(Console(stderr=True)) as show:
        summary = embed_shards(request, show)
    if as_json:
        print(json.dumps(summary.as_json(), ensure_ascii=False))
    else:
        print_summary(summary, to)
    error = summary_error(summary)
    if error is not None:
        print_failures(summary)
        raise error


def _listed(specs: list[str]) -> list[Shard]:
    shards = list_shards(specs, sys.stdin)
    if not shards:
        raise UsageError("SHARDS", expected="at least one shard", found="an empty list on stdin")
    return shards


def print_failures(summary: EmbedSummary) -> None:
    """Shards that were set aside and, where they are too many, samples that were dropped."""
    for failure in summary.failed:
        where = display_name(failure["shard"])
        told = failure["reason"].removeprefix(f"{where}: ")
        print(printable(f"set aside {where}: {told}"), file=sys.stderr)
    if summary.loss > summary.max_loss:
        for url, lost in summary.lost[:MOST_LISTED]:
            told = f"{lost.reason} {lost.detail}".strip()
            print(printable(f"dropped {display_name(url)} {lost.key}: {told}"), file=sys.stderr)
        if len(summary.lost) > MOST_LISTED:
            left = len(summary.lost) - MOST_LISTED
            print(f"and {left:,} more, in the ledger of each shard", file=sys.stderr)


def print_summary(summary: EmbedSummary, to: str) -> None:
    """The run in a few lines, for a person."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in summary.reasons.items())
    print(
        f"{summary.rows:,} rows of {summary.samples:,} samples in {to}"
        + (f"; {summary.dropped:,} dropped ({reasons})" if summary.dropped else "; none dropped")
    )
    counted = f"shards: {summary.done} done, {summary.skipped} were done already"
    print(counted + (f", {len(summary.failed)} set aside" if summary.failed else ""))
    stages = {stage: spent for stage, spent in summary.seconds.items() if stage != "total"}
    if stages:
        print(f"{summary.pairs_per_second:,.1f} pairs/s; busy seconds by stage, all threads:")
        for stage, spent in sorted(stages.items(), key=lambda item: -item[1]):
            print(f"  {stage:<15}{spent:9.2f}")
    print(f"{summary.seconds['total']:.1f} s in all")

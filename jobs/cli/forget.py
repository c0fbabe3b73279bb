"""`chiasm forget`."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import Annotated

import typer

from chiasm.jobs.cli.options import Collection
from chiasm.jobs.console import json_line, printable
from chiasm.pipeline.collection import Collection as OpenCollection
from chiasm.pipeline.forget import ForgetSummary, forget
from chiasm.pipeline.storage import Folder, display_name

HELP = """
  chiasm forget photos.chiasm /data/photos/00007.tar
  chiasm forget photos.chiasm 's3://bucket/photos/000[0-4]?.tar' --dry-run
  chiasm forget photos.chiasm -- 00007-1f0c2a9b44

Takes the rows of shards out of a collection, with what the ledger says of them. The shards
themselves are not touched; embedded again, they come back. A shard is named by its path, its URL,
its id, or a glob of those; it need not exist any more. The index has the rows until chiasm
index add takes them out, or it is built again."""
Specs = Annotated[list[str], typer.Argument(metavar="SHARD...", help="Paths, URLs, ids or globs.")]


def forget_(
    collection: Collection,
    shards: Specs,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be taken out, and change nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    folder = OpenCollection.open(collection).folder
    summary = forget(folder, shards, dry_run=dry_run)
    if as_json:
        print(json_line({**asdict(summary), "rows": summary.rows}))
    else:
        print_summary(summary, folder)


def print_summary(summary: ForgetSummary, folder: Folder) -> None:
    """What was taken out, in a few lines."""
    did = "forgot" if summary.written else "would forget"
    for shard in summary.shards:
        name = display_name(shard.url) if shard.url else shard.id
        print(printable(f"{did} {name}: {shard.rows:,} rows"))
    for spec in summary.already:
        print(printable(f"forgotten before: {spec}"))
    print(printable(f"{did} {len(summary.shards):,} shards, {summary.rows:,} rows"))
    if summary.shards and summary.written and summary.indexed:
        command = f"chiasm index add {shlex.quote(display_name(folder.url))}"
        print(printable(f"the index is stale now: run {command}"))

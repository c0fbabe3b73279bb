"""`chiasm relocate`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console

from chiasm.jobs.cli.options import Collection
from chiasm.jobs.console import json_line, printable
from chiasm.pipeline.collection import Collection as OpenCollection
from chiasm.pipeline.errors import CollectionError
from chiasm.pipeline.relocate import RelocateSummary, relocate
from chiasm.pipeline.storage import display_name

HELP = """
  chiasm relocate photos.chiasm --from /mnt/old/photos --to /mnt/new/photos
  chiasm relocate photos.chiasm --from /data/photos --to s3://bucket/photos --dry-run

For shards that were moved or copied: the collection follows them, and nothing is embedded again.
Rows, ids and the index stay. FROM and TO are folders, buckets or single shards, as paths or URLs;
names below them stay. Every shard is first compared at its new place: its size, and the bytes of
some members. Unless all are the same, nothing is changed. Where the folder is the same and only the
times of its files are new, give it twice."""
Partial = Annotated[bool, typer.Option("--partial", help="Move those that are proven the same.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Compare, and change nothing.")]


def relocate_(
    collection: Collection,
    source: Annotated[str, typer.Option("--from", metavar="FROM", help="Where shards were.")],
    target: Annotated[str, typer.Option("--to", metavar="TO", help="Where they are now.")],
    partial: Partial = False,
    dry_run: DryRun = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    folder = OpenCollection.open(collection).folder
    with Console(stderr=True).status("reading ledgers") as status:

        def report(what: str, done: int, total: int) -> None:
            status.update(f"{what} {done:,} of {total:,} shards")

        summary = relocate(
            folder, source, target, partial=partial, dry_run=dry_run, progress=report
        )
    if as_json:
        print(json_line(asdict(summary)))
    else:
        print_summary(summary, dry_run=dry_run)
    if summary.refused:
        more = ", and none was moved" if not summary.written and not dry_run else ""
        raise CollectionError(
            f"relocate {collection}",
            expected="every shard the same at its new place",
            found=f"{len(summary.refused):,} that are not, listed above{more}",
            do="--partial moves the others" if summary.moved and not summary.written else "",
        )


def print_summary(summary: RelocateSummary, *, dry_run: bool) -> None:
    """What was moved, and what was not, in a few lines."""
    for refusal in summary.refused:
        shard, place = display_name(refusal.shard), display_name(refusal.to)
        reason = refusal.reason.removeprefix(f"{place}: ")
        print(printable(f"not moved {shard}: {place}: {reason}"))
    already = f"; {summary.already:,} were moved before" if summary.already else ""
    already += f"; {summary.unchanged:,} are where they were" if summary.unchanged else ""
    shards = f"{len(summary.moved):,} shards, {summary.rows:,} rows"
    if summary.written:
        print(printable(f"moved {shards}{already}"))
    elif dry_run:
        print(printable(f"would move {shards}{already}; nothing was changed"))
    elif summary.moved or summary.refused:
        print(printable(f"proven {shards}{already}"))
    else:
        print(printable(f"nothing to move{already}"))

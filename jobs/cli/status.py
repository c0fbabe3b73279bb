"""`chiasm status`: what stands in a collection, read from its ledgers and runs, with no cluster."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from chiasm.jobs.console import printable
from chiasm.jobs.status import read_status
from chiasm.pipeline.storage import display_name


def register(app: typer.Typer) -> None:
    app.command("status", help="Tell what a collection holds, what was dropped, who is at work.")(
        status
    )


def status(
    collection: Annotated[str, typer.Argument(metavar="COLLECTION")],
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    found = read_status(collection)
    if as_json:
        print(json.dumps(vars(found), ensure_ascii=False))
        return
    print(f"{found.path}: {found.encoder}, width {found.dim}, {found.precision}")
    print(f"{found.rows:,} rows of {found.samples:,} samples from {found.shards:,} shards")
    _print_counts("dropped", found.reasons)
    _print_counts("notes", found.notes)
    for url in found.unfinished:
        print(printable(f"unfinished {display_name(url)}: run the same chiasm embed again"))
    for lost in found.set_aside:
        print(printable(f"set aside {display_name(lost['shard'])}: {lost['reason']}"))
    for run in found.runs[-5:]:
        held = f", holds {', '.join(run['holds'])}" if run["holds"] else ""
        print(f"run {run['id']}: {run['command']} {run['state']}, {run['age']}{held}")


def _print_counts(what: str, counts: dict[str, int]) -> None:
    if counts:
        print(f"{what}: " + ", ".join(f"{count:,} {reason}" for reason, count in counts.items()))

"""`chiasm index build`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console

from chiasm.index import BuildSummary, build_index
from chiasm.jobs.cli.options import Address, Assignments, Collection, Preset
from chiasm.jobs.config import compose
from chiasm.jobs.console import json_line, printable

HELP = """
  chiasm index build photos.chiasm
  chiasm index build photos.chiasm --column image --column joint

Below 100,000 rows a column is searched exactly; above, by an IVF index of 8-bit codes whose
candidates are scored again exactly. The live index answers until the new one is complete."""
SHOWN_FIELDS = 20  # fields of the json whose types were widened


def build(
    collection: Collection,
    column: Annotated[
        list[str] | None,
        typer.Option(
            help="image, text, joint, or another modality of the encoder; can be repeated. "
            "(default: all with vectors)"
        ),
    ] = None,
    address: Address = None,
    preset: Preset = "laptop",
    assignments: Assignments = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was built as JSON.")] = False,
) -> None:
    composed = compose(preset, assignments or (), uses=["index", "workers"])
    settings = composed.index
    console = Console(stderr=True)
    with console.status("reading embeddings") as status:

        def report(stage: str, done: int, total: int) -> None:
            status.update(f"{stage}: {done:,} of {total:,} rows")

        if address is None and composed.workers.count == 1:
            summary = build_index(collection, columns=column, settings=settings, progress=report)
        else:
            from chiasm.jobs.build_index import build_on_cluster

            summary = build_on_cluster(
                collection,
                address=address,
                workers=composed.workers,
                columns=column,
                settings=settings,
                progress=report,
            )
    if as_json:
        print(json_line(asdict(summary)))
    else:
        print_summary(summary)


def print_summary(summary: BuildSummary) -> None:
    """What was built, in a few lines."""
    rows, shards = f"{summary.rows:,} rows", f"{summary.shards:,} shards"
    print(printable(f"generation {summary.generation} is live: {rows} of {shards}"))
    for column, kind in summary.columns.items():
        print(printable(f"  {column:<6}{summary.vectors[column]:>12,} vectors  {kind}"))
    for field in summary.meta[:SHOWN_FIELDS]:
        values = ", ".join(f"{name} {value}" for name, value in field.items())
        print(printable(f"  meta {values}"))
    if len(summary.meta) > SHOWN_FIELDS:
        print(printable(f"  meta: {len(summary.meta) - SHOWN_FIELDS} more, see --json"))
    stages = ", ".join(f"{stage} {spent:.1f} s" for stage, spent in summary.seconds.items())
    print(printable(f"  {stages}"))

"""`chiasm index build`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console

from chiasm.index.build import Built, build_index
from chiasm.jobs.cli.options import Assignments, Collection, Preset
from chiasm.jobs.config import compose
from chiasm.jobs.console import printable

HELP = """
  chiasm index build photos.chiasm
  chiasm index build photos.chiasm --column image --column joint

Below 100,000 rows the search is exact; above, cells of 8-bit codes, rescored exactly. The index
that was live goes on answering until the new one is whole."""


def build(
    collection: Collection,
    column: Annotated[
        list[str] | None,
        typer.Option(help="image, text or joint; may be repeated. (default: all that have rows)"),
    ] = None,
    preset: Preset = "laptop",
    assignments: Assignments = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was built as JSON.")] = False,
) -> None:
    settings = compose(preset, assignments or ()).index
    console = Console(stderr=True)
    with console.status("reading embeddings") as status:

        def show(stage: str, done: int, total: int) -> None:
            status.update(f"{stage}: {done:,} of {total:,} rows")

        built = build_index(collection, column, settings, progress=show)
    if as_json:
        print(json.dumps(asdict(built), ensure_ascii=False))
    else:
        print_built(built)


def print_built(built: Built) -> None:
    """What was built, in a few lines."""
    print(f"generation {built.generation} is live: {built.rows:,} rows of {built.shards:,} shards")
    for column, kind in built.columns.items():
        print(f"  {column:<6}{built.vectors[column]:>12,} vectors  {kind}")
    for widened in built.meta:
        types = ", ".join(f"{name} {kind}" for name, kind in widened.items())
        print(printable(f"  meta {types}"))
    print("  " + ", ".join(f"{stage} {spent:.1f} s" for stage, spent in built.seconds.items()))

"""`chiasm index build`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console

from chiasm.index import BuildSummary, build_index
from chiasm.jobs.cli.options import Assignments, Collection, Preset, StoredEncoder
from chiasm.jobs.cli.reports import Plot, print_reports, require_plot, write_plot
from chiasm.jobs.cli.units import gigabytes, milliseconds
from chiasm.jobs.config import Settings, compose
from chiasm.jobs.console import json_line, printable

HELP = """
  chiasm index build photos.chiasm
  chiasm index build photos.chiasm --column image --recall 0.98 --memory 2GB

Below 10,000 rows a column is searched exactly. Above, plans are tried on a sample: the cheapest
that gets the recall on text queries and on pictures, within the limits, is built and measured
against exact search. What it promises is printed, and stored with the index: chiasm index status
--report prints it again. The live index answers until the new one is complete."""
Recall = Annotated[
    float | None, typer.Option(help="Share of the best rows to be found. (default: 0.95)")
]
At = Annotated[int | None, typer.Option(help="How many best rows these are. (default: 10)")]
Memory = Annotated[
    str | None, typer.Option(help="Of an open column, at the most: 4GB, 500MB. (default: any)")
]
Latency = Annotated[
    str | None, typer.Option(help="Of 99 % of single queries, at the most: 10ms. (default: any)")
]
Kind = Annotated[
    str | None,
    typer.Option("--index", metavar="KIND", help="exact, ivf or projected. (default: tuned)"),
]
Dims = Annotated[
    int | None,
    typer.Option(help="Of codes: of a projection (default: tuned), or, of ivf, first numbers."),
]
Vectors = Annotated[
    str | None,
    typer.Option(
        metavar="FORM",
        help="Copies of vectors in the index: float16, int8, none. (default: float16)",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        help="A running Ray that fills segments: host:port or auto. (default: none, this process "
        "does; with workers.count above 1, one started here)"
    ),
]
Queries = Annotated[
    str | None, typer.Option(metavar="FILE", help="Text queries to tune with, one a line.")
]
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
    recall: Recall = None,
    at: At = None,
    memory: Memory = None,
    latency: Latency = None,
    kind: Kind = None,
    dims: Dims = None,
    vectors: Vectors = None,
    queries: Queries = None,
    plot: Plot = None,
    encoder: StoredEncoder = None,
    address: Address = None,
    preset: Preset = "laptop",
    assignments: Assignments = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was built as JSON.")] = False,
) -> None:
    flags = {
        "index.recall": recall,
        "index.at": at,
        "index.memory_gb": gigabytes(memory, "--memory"),
        "index.latency_ms": milliseconds(latency, "--latency"),
        "index.kind": kind,
        "index.dims": dims,
        "index.vectors": vectors,
        "index.queries": queries,
    }
    composed = compose(preset, assignments or (), flags, uses=["index", "workers"])
    if plot is not None:
        require_plot(plot)  # refused now rather than after the build
    summary = _built(collection, column, encoder, address, composed)
    if plot is not None:
        write_plot(plot, summary.reports)
    if as_json:
        print(json_line(asdict(summary)))
    else:
        print_summary(summary)


def _built(
    collection: str,
    column: list[str] | None,
    encoder: str | None,
    address: str | None,
    composed: Settings,
) -> BuildSummary:
    settings = composed.index
    console = Console(stderr=True)
    with console.status("reading embeddings") as status:

        def report(stage: str, done: int, total: int) -> None:
            status.update(f"{stage}: {done:,} of {total:,} rows")

        if address is None and composed.workers.count == 1:
            return build_index(
                collection, columns=column, settings=settings, progress=report, encoder=encoder
            )
        else:
            from chiasm.jobs.build_index import build_on_cluster

            return build_on_cluster(
                collection,
                address=address,
                workers=composed.workers,
                columns=column,
                settings=settings,
                progress=report,
                encoder=encoder,
            )


def print_summary(summary: BuildSummary) -> None:
    """What was built, in a few lines."""
    rows, shards = f"{summary.rows:,} rows", f"{summary.shards:,} shards"
    print(printable(f"generation {summary.generation} is live: {rows} of {shards}"))
    for column, kind in summary.columns.items():
        print(printable(f"  {column:<6}{summary.vectors[column]:>12,} vectors  {kind}"))
    for column, size in summary.token_bytes.items():
        print(printable(f"  {column}: tokens take {size:,.0f} bytes a row"))
    for column in summary.unmeasured:
        what = "rows are scored by 8-bit vectors; what these lose was not measured"
        print(printable(f"  {column}: {what}"))
    print_reports(summary.reports)
    for field in summary.meta[:SHOWN_FIELDS]:
        values = ", ".join(f"{name} {value}" for name, value in field.items())
        print(printable(f"  meta {values}"))
    if len(summary.meta) > SHOWN_FIELDS:
        print(printable(f"  meta: {len(summary.meta) - SHOWN_FIELDS} more, see --json"))
    stages = ", ".join(f"{stage} {spent:.1f} s" for stage, spent in summary.seconds.items())
    print(printable(f"  {stages}"))

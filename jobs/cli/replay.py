"""`chiasm replay`."""

from __future__ import annotations

from typing import Annotated

import typer

from chiasm.index import replay
from chiasm.jobs.cli.options import (
    ENCODING,
    Assignments,
    Device,
    Preset,
    StoredEncoder,
    prepare_pictures,
    print_progress,
)
from chiasm.jobs.config import compose
from chiasm.jobs.console import printable
from chiasm.pipeline.errors import CollectionError

HELP = """
  chiasm replay boat.json
  chiasm replay boat.json --collection s3://bucket/photos.chiasm

A receipt is what chiasm search --receipt wrote. The generation of the index that answered then is
searched, whatever is live now. Prints the bytes that search --json printed with --receipt, one JSON
object a query, or nothing where an answer differs. What has changed is on stderr, a line each, and
the exit code is then 1. Versions and processors are only noted where the bytes are the same. The
stored vectors are searched; the queries are encoded again to compare them."""


def replay_(
    receipt: Annotated[
        str, typer.Argument(metavar="RECEIPT", help="A file of chiasm search --receipt.")
    ],
    collection: Annotated[
        str | None, typer.Option(help="Where the collection is now. (default: where it was)")
    ] = None,
    encode: Annotated[bool, typer.Option(help="Encode the queries again, and compare.")] = True,
    encoder: StoredEncoder = None,
    device: Device = None,
    preset: Preset = "laptop",
    assignments: Assignments = None,
) -> None:
    settings = compose(preset, assignments or (), {"encoder.device": device}, uses=ENCODING)
    prepare_pictures(settings)
    found = replay(
        receipt, collection=collection, encoding=settings.encoder, encode=encode, encoder=encoder
    )
    for line in found.lines:
        print(printable(line))
    for note in found.notes:
        print_progress(f"note: {note}")
    for change in found.changes:
        print_progress(change)
    if found.changes:
        raise CollectionError(
            receipt,
            expected="everything as it was",
            found=f"{len(found.changes):,} change{'s' * (len(found.changes) > 1)}, listed above"
            + ("; the answers are the same" if found.same else ""),
        )

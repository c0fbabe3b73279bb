"""`chiasm check`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from chiasm.index.verify import Report
from chiasm.index.verify import check as check_collection
from chiasm.jobs.cli.options import Collection
from chiasm.jobs.console import printable
from chiasm.pipeline.errors import CollectionError

HELP = """
  chiasm check photos.chiasm
  chiasm check photos.chiasm --reencode 20

Ledgers against embeddings, rows against the catalog, dims, unit length, fingerprints, checksums.
With --reencode, so many rows are read again from their shards and encoded again."""


def check(
    collection: Collection,
    reencode: Annotated[int, typer.Option(min=0, help="Rows to read and encode again.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    report = check_collection(collection, reencode=reencode)
    if as_json:
        findings = [{"where": found.where, "what": found.what} for found in report.findings]
        print(json.dumps({"ok": report.ok, "checked": report.checked, "findings": findings}))
    else:
        print_report(report)
    if not report.ok:
        raise CollectionError(
            collection,
            expected="every promise kept",
            found=f"{len(report.findings)} broken (listed above)",
            do="embed the shards named again, then chiasm index build",
        )


def print_report(report: Report) -> None:
    for found in report.findings:
        print(printable(str(found)))
    print("checked " + ", ".join(f"{count:,} {what}" for what, count in report.checked.items()))
    if report.ok:
        print("every promise is kept")

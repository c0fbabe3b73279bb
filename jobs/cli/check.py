"""`chiasm check`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from chiasm.index.verify import Report
from chiasm.index.verify import check as check_collection
from chiasm.jobs.cli.options import Assignments, Collection, Device, Preset, StoredEncoder
from chiasm.jobs.config import compose
from chiasm.jobs.console import json_line, printable
from chiasm.pipeline.errors import CollectionError, UsageError

HELP = """
  chiasm check photos.chiasm
  chiasm check photos.chiasm --reencode 20

Ledgers against embeddings, embeddings against the index, dims, unit norm, fingerprints, checksums.
With --reencode, so many rows are read again from their shards and encoded again, on --device. Each
line printed is one finding, with what to do about it; the exit code is then 1."""


def check(
    collection: Collection,
    reencode: Annotated[int, typer.Option(min=0, help="Rows to read and encode again.")] = 0,
    encoder: StoredEncoder = None,
    device: Device = None,
    preset: Preset = "laptop",
    assignments: Assignments = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    if encoder is not None and not reencode:
        raise UsageError("check --encoder", expected="--reencode N with it", found="none")
    settings = compose(
        preset,
        assignments or (),
        {"encoder.device": device},
        uses=("encoder.device", "encoder.threads"),  # the precision is the collection's
    )
    report = check_collection(
        collection, reencode=reencode, encoding=settings.encoder, encoder=encoder
    )
    if as_json:
        findings = [asdict(finding) for finding in report.findings]
        print(json_line({"ok": report.ok, "checked": report.checked, "findings": findings}))
    else:
        print_report(report)
    if not report.ok:
        raise CollectionError(
            collection,
            expected="no findings",
            found=f"{len(report.findings)}, listed above",
            do=report.advice(),
        )


def print_report(report: Report) -> None:
    for finding in report.findings:
        print(printable(str(finding)))
    counts = ", ".join(f"{count:,} {kind}" for kind, count in report.checked.items())
    print(printable(f"checked {counts}"))
    if report.ok:
        print("no findings")

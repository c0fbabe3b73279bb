"""`chiasm status`: the state of a collection, read from its ledgers and runs, with no cluster."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Annotated, Any

import typer

from chiasm.jobs.cli.options import Collection
from chiasm.jobs.console import json_line, printable
from chiasm.jobs.status import IndexStatus, read_status
from chiasm.pipeline.storage import display_name

HELP = """
  chiasm status photos.chiasm
  chiasm status photos.chiasm --json

Read from ledgers, runs and the index's own files, with no cluster and no model."""

MOST_NAMES = 4  # of shards in one line


def status(
    collection: Collection,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    found = read_status(collection)
    if as_json:
        print(json_line(asdict(found)))
        return
    print(printable(f"{found.path}: {found.encoder}, width {found.dim}, {found.precision}"))
    rows, samples = f"{found.rows:,} rows", f"{found.samples:,} samples"
    print(printable(f"{rows} of {samples} from {found.shards:,} shards"))
    _print_counts("dropped", found.reasons)
    _print_counts("notes", found.notes)
    print(printable(format_index(found.index)))
    if found.index.audit_problem:
        print(printable(found.index.audit_problem))
    for url in found.unfinished:
        print(printable(f"unfinished {display_name(url)}: run the same chiasm embed again"))
    for quarantined in found.set_aside:
        print(
            printable(f"quarantined {display_name(quarantined['shard'])}: {quarantined['reason']}")
        )
    for damaged in found.damaged:
        print(printable(f"damaged {display_name(damaged['shard'])}: {damaged['reason']}"))
    if found.earlier_rules:
        count = f"{found.earlier_rules:,} shards read by earlier rules"
        print(printable(f"{count}; chiasm embed --reembed reads them again"))
    if found.older_decoding:
        count = f"{found.older_decoding:,} shards made by older decoding"
        print(printable(f"{count}; chiasm embed --reembed makes them again"))
    if found.earlier_prompts:
        print(
            "made by earlier prompts, which are today's where the model has none: "
            "chiasm embed --reembed of all shards makes the rows anew if they would be others"
        )
    if sources := found.sources.describe(found.path):
        print(printable(sources))
    for run in found.runs[-5:]:
        print(printable(format_run(run)))


def format_index(index: IndexStatus) -> str:
    """The state of the index in one line."""
    if index.state in ("missing", "damaged"):
        return f"index: {index.state}; {index.do}"
    columns = ", ".join(f"{name} ({kind})" for name, kind in index.columns.items())
    deleted = f" ({index.deleted:,} deleted)" if index.deleted else ""
    line = f"index: generation {index.generation}, {index.rows:,} rows{deleted}, columns {columns}"
    if index.drift:
        shares = ", ".join(f"{name} {share:.1%}" for name, share in index.drift.items())
        line = f"{line}, drift of added rows {shares}"
    if index.audited:
        line = f"{line}, audited recall {format_audited(index.audited)}"
    if index.instead_of:
        line = f"{line}, in place of the live one ({index.instead_of})"
    if not index.do:
        return line
    if index.state == "current":
        return f"{line}; {index.do}"
    counts = Counter(index.stale_shards.values())
    stale = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    why = f"stale (shards: {stale})" if stale else "of another encoder"
    return f"{line}; {why}; {index.do}"


def format_audited(audited: list[dict[str, Any]]) -> str:
    """The recall of audited queries: `image text 0.912 BELOW the promised 0.95`. Where those of one
    name scanned several numbers of lists, these as well."""
    some = [one for one in audited if one["queries"]]
    names = Counter((one["column"], one["kind"]) for one in some)
    return ", ".join(
        f"{one['column']} {one['kind']} {one['recall']:.3f}"
        + (f" in {one['nprobe']:,} lists" if names[one["column"], one["kind"]] > 1 else "")
        + (f" BELOW the promised {one['promise']:g}" if one["broken"] else "")
        + (" (against its 8-bit vectors)" if one["vectors"] == "int8" else "")
        for one in some
    )


def format_run(run: dict[str, Any]) -> str:
    """One run in one line. What a run of another machine is at cannot be known in one look."""
    if run["state"] == "unreadable":
        return f"run {run['id']}: its record cannot be read; perhaps a newer version wrote it"
    where = f" on {run['host']}, if it still lives" if run["foreign"] else ""
    claims = f", holds {format_some(run['holds'])}" if run["holds"] else ""
    return f"run {run['id']}: {run['command']} {run['state']}{where}, {run['age']}{claims}"


def format_some(names: list[str]) -> str:
    """The first few of many names."""
    first = ", ".join(names[:MOST_NAMES])
    return first + (f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else "")


def _print_counts(what: str, counts: dict[str, int]) -> None:
    if counts:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
        print(printable(f"{what}: {reasons}"))

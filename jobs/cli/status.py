"""`chiasm status`: what stands in a collection, read from its ledgers and runs, with no cluster."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from chiasm.jobs.console.terminal import printable
from chiasm.pipeline.collection.embeddings import embeddings
from chiasm.pipeline.collection.identity import Collection
from chiasm.pipeline.collection.ledger import entries
from chiasm.pipeline.collection.runs import RunRecord, runs
from chiasm.pipeline.storage.folder import shown


def register(app: typer.Typer) -> None:
    app.command("status", help="Tell what a collection holds, what was dropped, who is at work.")(
        status
    )


@dataclass(frozen=True)
class Status:
    """A collection as its files tell it. `reasons` counts dropped samples, `notes` odd rows."""

    path: str
    encoder: str
    dim: int
    precision: str
    shards: int
    rows: int
    samples: int
    dropped: int
    reasons: dict[str, int]
    notes: dict[str, int]
    unfinished: list[str]
    set_aside: list[dict[str, str]]
    runs: list[dict[str, Any]]


def read_status(path: str) -> Status:
    """Raises CollectionError where there is no collection."""
    collection = Collection.open(path)
    done = {file.shard_id for file in embeddings(collection.folder)}
    reasons: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    unfinished, set_aside = [], []
    rows = dropped = 0
    for entry in entries(collection.folder):
        if entry.set_aside is not None:
            set_aside.append({"shard": entry.source.url, "reason": entry.set_aside})
        elif entry.source.id not in done:
            unfinished.append(entry.source.url)
        else:
            rows += entry.rows
            dropped += len(entry.dropped)
            reasons.update(entry.reasons())
            notes.update(note.reason for note in entry.notes)
    return Status(
        path=path,
        encoder=collection.identity.encoder,
        dim=collection.identity.dim,
        precision=collection.identity.precision,
        shards=len(done),
        rows=rows,
        samples=rows + dropped,
        dropped=dropped,
        reasons=dict(reasons.most_common()),
        notes=dict(notes.most_common()),
        unfinished=unfinished,
        set_aside=set_aside,
        runs=[_told(run) for run in runs(collection.folder)],
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
        print(printable(f"unfinished {shown(url)}: run the same chiasm embed again"))
    for lost in found.set_aside:
        print(printable(f"set aside {shown(lost['shard'])}: {lost['reason']}"))
    for run in found.runs[-5:]:
        held = f", holds {', '.join(run['holds'])}" if run["holds"] else ""
        print(f"run {run['id']}: {run['command']} {run['state']}, {run['age']}{held}")


def _print_counts(what: str, counts: dict[str, int]) -> None:
    if counts:
        print(f"{what}: " + ", ".join(f"{count:,} {reason}" for reason, count in counts.items()))


def _told(run: RunRecord) -> dict[str, Any]:
    killed = run.state == "running" and not run.alive()
    return {
        "id": run.id,
        "command": run.command,
        "state": "killed" if killed else run.state,
        "host": run.host,
        "pid": run.pid,
        "started": run.started,
        "age": _ago(time.time() - run.started),
        "holds": [] if killed else list(run.holds),
    }


def _ago(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"started {seconds / length:.0f} {unit} ago"
    return f"started {seconds:.0f} seconds ago"

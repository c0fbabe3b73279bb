"""What a collection holds, what was dropped, and who is at work."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from chiasm.pipeline.collection import Collection, RunRecord, embeddings, entries, runs


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
        if entry.quarantined is not None:
            set_aside.append({"shard": entry.source.url, "reason": entry.quarantined})
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
        "holds": [] if killed else list(run.claimed),
    }


def _ago(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"started {seconds / length:.0f} {unit} ago"
    return f"started {seconds:.0f} seconds ago"

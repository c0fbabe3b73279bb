"""What a collection and its index hold, what was dropped, and which runs are on."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from chiasm.index.segments import open_current, stale_shards
from chiasm.pipeline.collection import Collection, RunRecord, embeddings, entries, runs
from chiasm.pipeline.errors import CollectionError
from chiasm.pipeline.shards import RULES


@dataclass(frozen=True)
class IndexStatus:
    """The live index.

    state: current; stale, where it does not cover the embeddings beside it; other_encoder; missing;
    damaged. columns: name -> kind of its index. stale_shards: shard id -> new, changed, damaged or
    gone. do: what to run, empty where the index is current.
    """

    state: str
    generation: int | None = None
    rows: int = 0
    columns: dict[str, str] = field(default_factory=dict)
    stale_shards: dict[str, str] = field(default_factory=dict)
    do: str = ""


@dataclass(frozen=True)
class Status:
    """A collection as its files describe it. `reasons` counts dropped samples, `notes` odd rows;
    `set_aside`: quarantined shards; `damaged`: shards that are cut or damaged, of which only what
    came before is there; `earlier_rules`: how many shards were read by earlier rules."""

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
    index: IndexStatus
    runs: list[dict[str, Any]]
    damaged: list[dict[str, str]] = field(default_factory=list)
    earlier_rules: int = 0


def read_status(path: str) -> Status:
    """Raises CollectionError where there is no collection."""
    collection = Collection.open(path)
    done = {file.shard_id for file in embeddings(collection.folder)}
    reasons: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    unfinished, quarantined, damaged = [], [], []
    rows = dropped = earlier_rules = 0
    for entry in entries(collection.folder):
        if entry.quarantined is not None:
            quarantined.append({"shard": entry.source.url, "reason": entry.quarantined})
        elif entry.source.id not in done:
            unfinished.append(entry.source.url)
        else:
            rows += entry.rows
            dropped += entry.dropped_count
            reasons.update(entry.reasons())
            notes.update(entry.note_reasons())
            earlier_rules += entry.rules < RULES
            if entry.damage is not None:
                damaged.append({"shard": entry.source.url, "reason": entry.damage})
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
        set_aside=quarantined,
        index=read_index_status(collection, path),
        runs=[_run(run) for run in runs(collection.folder)],
        damaged=damaged,
        earlier_rules=earlier_rules,
    )


def read_index_status(collection: Collection, path: str) -> IndexStatus:
    """The state of the live index; a damaged one is a state, not an error."""
    rebuild = f"run chiasm index build {path}"
    try:
        generation = open_current(collection.folder)
    except CollectionError:
        return IndexStatus("damaged", do=rebuild)
    if generation is None:
        return IndexStatus("missing", do=rebuild)
    manifest = generation.manifest
    stale = stale_shards(collection.folder, generation.indexed_shards())
    state = "stale" if stale else "current"
    if manifest.fingerprint != collection.identity.fingerprint:
        state = "other_encoder"
    return IndexStatus(
        state=state,
        generation=generation.number,
        rows=manifest.rows,
        columns={name: plan.kind for name, plan in manifest.columns.items()},
        stale_shards=stale,
        do="" if state == "current" else rebuild,
    )


def _run(run: RunRecord) -> dict[str, Any]:
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

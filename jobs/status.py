"""What a collection and its index hold, what was dropped, and which runs are on."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from chiasm.index.segments import (
    EmbeddedShards,
    audits_of,
    build_command,
    open_current,
    stale_advice,
)
from chiasm.pipeline.collection import (
    THIS_MACHINE,
    Collection,
    Life,
    RunObserver,
    RunRecord,
    Seen,
    ShardFiles,
    ShardSummary,
    Survey,
    read_failure,
)
from chiasm.pipeline.errors import CollectionError
from chiasm.pipeline.images import DECODING
from chiasm.pipeline.shards import RULES
from chiasm.pipeline.storage import Folder
from chiasm.pipeline.timing import SYSTEM_CLOCK
from chiasm.pipeline.totals import Totals
from chiasm.pipeline.verify import SourcesSeen, look_at_sources


@dataclass(frozen=True)
class IndexStatus:
    """The live index.

    state: current; stale, where it does not cover the embeddings beside it; other_encoder; missing;
    damaged. columns: name -> kind of its index. stale_shards: shard id -> new, changed, damaged or
    gone. do: what to run, empty where the index is current. instead_of: why another generation
    answers than the one that CURRENT names, else empty. deleted: rows that searches leave out.
    drift: by column, the share of added rows that are farther from their centroids than 99 % of
    those that it was trained on. audited: by column and kind, the recall of queries that were
    audited; audit_problem: why it cannot be read, else empty.
    """

    state: str
    generation: int | None = None
    rows: int = 0
    columns: dict[str, str] = field(default_factory=dict)
    stale_shards: dict[str, str] = field(default_factory=dict)
    do: str = ""
    instead_of: str = ""
    deleted: int = 0
    drift: dict[str, float] = field(default_factory=dict)
    audited: list[dict[str, Any]] = field(default_factory=list)
    audit_problem: str = ""


@dataclass(frozen=True)
class Status:
    """A collection as its files describe it. `reasons` counts dropped samples, `notes` odd rows;
    `set_aside`: quarantined shards. `sources`: whether some done shards are where they were.
    `damaged`: shards that are cut or damaged, of which only what came before is there.
    `earlier_rules`: how many shards were read by earlier rules. `older_decoding`: how many were
    made by an older way from bytes to pixels. `earlier_prompts`: whether the rows were made when
    the model's prompts were not used."""

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
    sources: SourcesSeen
    damaged: list[dict[str, str]] = field(default_factory=list)
    earlier_rules: int = 0
    older_decoding: int = 0
    earlier_prompts: bool = False


def read_status(path: str) -> Status:
    """Raises CollectionError where there is no collection."""
    return status_of(Collection.open(path), path)


def status_of(collection: Collection, path: str) -> Status:
    """The same for an opened collection that is called `path` in messages."""
    folder = collection.folder
    observer = RunObserver(folder, SYSTEM_CLOCK, THIS_MACHINE.alive)
    survey = Survey(folder, ShardFiles.list(folder))
    totals, unfinished, quarantined = Totals(), list[str](), list[dict[str, str]]()
    sources: list[str] = []  # of done shards
    editions: dict[str, str] = {}  # of done shards that were given up when embedded anew
    for summary in all_summaries(survey):
        url = summary.source.url
        if summary.quarantined is not None:
            quarantined.append({"shard": url, "reason": summary.quarantined})
        elif summary.unfinished:
            unfinished.append(url)
        else:
            totals.add(summary)
            sources.append(url)
            if summary.source.id in survey.files.failures:
                editions[summary.source.id] = summary.edition
    quarantined += failures(folder, editions)
    return Status(
        path=path,
        encoder=collection.identity.encoder,
        dim=collection.identity.dim,
        precision=collection.identity.precision,
        shards=totals.shards,
        rows=totals.rows,
        samples=totals.samples,
        dropped=totals.dropped.total(),
        reasons=dict(totals.dropped.most_common()),
        notes=dict(totals.notes.most_common()),
        unfinished=sorted(unfinished),
        set_aside=sorted(quarantined, key=lambda failed: failed["shard"]),
        index=read_index_status(collection, totals.rows, survey.files),
        runs=[_run(seen) for seen in observer.observe()],
        damaged=totals.damaged,
        earlier_rules=_before(totals.rules, RULES),
        older_decoding=_before(totals.decodings, DECODING),
        earlier_prompts=collection.identity.of_unheard_prompts,
        sources=look_at_sources(sources),
    )


def _before(shards: Counter[int], version: int) -> int:
    """How many shards are of earlier versions."""
    return sum(count for of, count in shards.items() if of < version)


def all_summaries(survey: Survey) -> Iterator[ShardSummary]:
    """Those of every shard that has a ledger entry; raises CollectionError for a damaged one."""
    known: set[str] = set()
    for summary in survey.summaries():
        known.add(summary.source.id)
        yield summary
    left = [shard_id for shard_id in survey.files.ledgers if shard_id not in known]
    for summary in survey.read(left, skip_damaged=False):
        if summary is not None:
            yield summary


def failures(folder: Folder, editions: dict[str, str]) -> Iterator[dict[str, str]]:
    """Why shards were given up whose rows, of these editions, are whole all the same."""
    found = folder.map_concurrent(lambda shard_id: read_failure(folder, shard_id), editions)
    for edition, entry in zip(editions.values(), found, strict=True):
        # One of the very edition that is there has been made good since.
        if entry is not None and entry.edition != edition:
            reason = f"{entry.quarantined} (the rows that it had are kept)"
            yield {"shard": entry.source.url, "reason": reason}


def read_index_status(collection: Collection, rows: int, files: ShardFiles) -> IndexStatus:
    """The state of the live index; a damaged one is a state, not an error. rows: how many can be
    indexed. files: those of all shards."""
    rebuild = f"run {build_command(collection.folder) if rows else 'chiasm embed first'}"
    try:
        generation = open_current(collection.folder)
    except CollectionError:
        return IndexStatus("damaged", do=rebuild)
    if generation is None:
        return IndexStatus("missing", do=rebuild)
    manifest = generation.manifest
    embedded = EmbeddedShards(collection.folder, files.embeddings)
    stale = embedded.stale(generation.indexed_shards())
    audited, audit_problem = audits_of(collection.folder, generation.number, manifest)
    state, do = "current", ""
    if manifest.fingerprint != collection.identity.fingerprint:
        state, do = "other_encoder", rebuild
    elif stale:
        state, do = "stale", stale_advice(collection.folder, stale.values()) if rows else rebuild
    elif generation.instead_of or any(one.broken for one in audited):
        do = rebuild
    return IndexStatus(
        state=state,
        generation=generation.number,
        rows=manifest.rows,
        columns={name: str(plan) for name, plan in manifest.columns.items()},
        stale_shards=stale,
        do=do,
        instead_of=generation.instead_of,
        deleted=manifest.deleted,
        drift={name: round(one.share, 4) for name, one in manifest.drift.items() if one.rows},
        audited=[one.as_json() for one in audited],
        audit_problem=audit_problem,
    )


def _run(seen: Seen) -> dict[str, Any]:
    """A run as JSON. foreign: whether another machine may run it: one look cannot tell."""
    killed, foreign = seen.life is Life.DEAD, seen.life is Life.UNKNOWN
    run = seen.record or RunRecord(seen.id, "", "", 0, 0.0, 0.0, state="unreadable")
    return {
        "id": run.id,
        "command": run.command,
        "state": "killed" if killed else run.state,
        "foreign": foreign,
        "host": run.host,
        "pid": run.pid,
        "started": run.started,
        "age": _ago(time.time() - run.started) if run.started else "",
        "holds": list(run.claimed) if seen.may_live else [],
    }


def _ago(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"started {seconds / length:.0f} {unit} ago"
    return f"started {seconds:.0f} seconds ago"

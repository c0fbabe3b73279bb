"""`chiasm embed`: shards into a collection, on a pool of workers.

In come shards and settings, out come one Parquet file and one ledger entry a shard, and a summary.
Kill it anywhere and run the same command again: what is done is passed over, what dead runs left is
swept.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from chiasm.jobs.cluster import Pool, Recipe, connected
from chiasm.jobs.config import Settings
from chiasm.jobs.console import Progress
from chiasm.jobs.signals import STOPPING
from chiasm.pipeline.collection import (
    FOLDERS,
    SHARD_FOLDERS,
    Identity,
    LedgerEntry,
    Run,
    create_or_check,
    read_identity,
)
from chiasm.pipeline.encoders import split_encoder_name
from chiasm.pipeline.errors import ChiasmError
from chiasm.pipeline.records import Dropped, Shard
from chiasm.pipeline.storage import Folder
from chiasm.pipeline.worklist import WorkList


@dataclass(frozen=True)
class EmbedRequest:
    """What to embed into what. `limit`: embed only the first samples, that many in all."""

    shards: Sequence[Shard]
    to: str
    settings: Settings
    address: str | None = None
    limit: int | None = None

    def in_force(self) -> dict[str, Any]:
        """What the run's record keeps of it."""
        told = {"limit": self.limit, "address": self.address, "shards": len(self.shards)}
        return told | self.settings.as_dict()


@dataclass(frozen=True)
class EmbedSummary:
    """What stands in the collection for the shards that were named, whichever run put it there.

    `pairs_per_second` counts this run's rows, from the opening of its first shard to its last
    commit; `seconds` are busy seconds by stage summed over this run's threads and workers, and
    `total`, the wall clock.
    """

    samples: int
    rows: int
    dropped: int
    done: int
    skipped: int
    failed: list[dict[str, str]]
    pairs_per_second: float
    seconds: dict[str, float]
    reasons: dict[str, int] = field(default_factory=dict)
    lost: list[tuple[str, Dropped]] = field(default_factory=list)  # with the shard's URL
    max_loss: float = 0.01

    @property
    def loss(self) -> float:
        """The share of samples that were dropped."""
        return self.dropped / self.samples if self.samples else 0.0

    @property
    def exit_code(self) -> int:
        return 1 if self.failed or self.loss > self.max_loss else 0

    def as_json(self) -> dict[str, Any]:
        """The shape that docs/formats.md promises."""
        return {
            "samples": self.samples,
            "rows": self.rows,
            "dropped": self.dropped,
            "reasons": self.reasons,
            "shards": {"done": self.done, "skipped": self.skipped, "failed": self.failed},
            "pairs_per_second": self.pairs_per_second,
            "seconds": self.seconds,
        }


def embed_shards(
    request: EmbedRequest, show: Callable[[Progress], None] = lambda progress: None
) -> EmbedSummary:
    """Embed shards into a collection; raises ChiasmError for what would meet every shard."""
    started = time.monotonic()
    folder = Folder(request.to)
    identity = read_identity(folder)
    request = replace(request, settings=resolve_settings(request.settings, identity))
    with Run(folder, "embed", request.in_force()) as run:
        run.sweep(FOLDERS)
        work = WorkList(request.shards, run, request.settings.embedding, request.limit)
        if identity is not None and identity.encoder == request.settings.encoder.name:
            work.skip_finished(identity)  # what is done needs no worker to be passed over
        try:
            if not work.over:
                _embed_what_is_left(request, run, work, show)
        finally:
            run.sweep(SHARD_FOLDERS, own=True)
        summary = summarize(request, work, time.monotonic() - started)
        run.finish("failed" if summary.exit_code else "done", summary.as_json())
    return summary


def resolve_settings(settings: Settings, identity: Identity | None) -> Settings:
    """The encoder named for good, in the precision of the collection where there is one already.

    Raises UsageError for an unknown encoder, before anything is written."""
    encoder = replace(settings.encoder, name=absolute_name(settings.encoder.name))
    if identity is not None:
        encoder = replace(encoder, precision=identity.precision)
    return replace(settings, encoder=encoder)


def absolute_name(name: str) -> str:
    """`hf:./model` -> `hf:/where/it/is/model`, so that the collection opens from any folder."""
    family, model = split_encoder_name(name)
    if model and Path(model).expanduser().is_dir():
        return f"{family}:{Path(model).expanduser().resolve()}"
    return name


def _embed_what_is_left(
    request: EmbedRequest, run: Run, work: WorkList, show: Callable[[Progress], None]
) -> None:
    def welcome(identity: Identity) -> str:
        standing = create_or_check(run.folder, identity, run.id)
        if not work.fingerprint:
            work.skip_finished(standing)
        return standing.precision

    def tick(pool: Pool) -> None:
        STOPPING.check()
        show(progress_of(request, work, pool))

    encoder = request.settings.encoder
    recipe = Recipe.of_this_driver(
        encoder.name, encoder, run.folder.url, run.id, request.settings.embedding
    )
    with STOPPING.deferred(), connected(request.address, request.settings.workers):
        STOPPING.check()
        Pool(recipe, request.settings.workers, welcome=welcome, tick=tick).run(work)


def progress_of(request: EmbedRequest, work: WorkList, pool: Pool) -> Progress:
    samples, dropped = pool.at_work()
    return Progress(
        shards=len(request.shards),
        done=len(work.done),
        skipped=len(work.skipped),
        failed=len(work.quarantined),
        samples=sum(entry.samples for entry in work.done.values()) + samples,
        dropped=sum(len(entry.dropped) for entry in work.done.values()) + dropped,
        workers_ready=pool.ready,
        workers_asked=len(pool.workers),
        each_reserves=request.settings.workers.told(),
    )


def summarize(request: EmbedRequest, work: WorkList, wall: float) -> EmbedSummary:
    mine: list[LedgerEntry] = list(work.done.values())
    accounts = mine + list(work.skipped.values())
    seconds: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for entry in mine:
        seconds.update(entry.seconds)
    for entry in accounts:
        reasons.update(entry.reasons())
    spans = [entry.span for entry in mine if entry.span is not None]
    busy = max(last for _, last in spans) - min(first for first, _ in spans) if spans else 0.0
    rows = sum(entry.rows for entry in mine)
    names = {shard.id: shard.url for shard in request.shards}
    return EmbedSummary(
        samples=sum(entry.samples for entry in accounts),
        rows=sum(entry.rows for entry in accounts),
        dropped=sum(len(entry.dropped) for entry in accounts),
        done=len(work.done),
        skipped=len(work.skipped),
        failed=[
            {"shard": names[shard], "reason": reason} for shard, reason in work.quarantined.items()
        ],
        pairs_per_second=round(rows / busy, 2) if busy else 0.0,
        seconds={stage: round(spent, 3) for stage, spent in seconds.items()}
        | {"total": round(wall, 3)},
        reasons=dict(reasons.most_common()),
        lost=[(entry.source.url, lost) for entry in accounts for lost in entry.dropped],
        max_loss=request.settings.max_loss,
    )


def summary_error(summary: EmbedSummary) -> ChiasmError | None:
    """Why the run's exit code is not 0, as one line; None when it is."""
    if summary.failed:
        return ChiasmError(
            "embed",
            expected="every shard embedded",
            found=f"{len(summary.failed)} set aside (listed above)",
            do="mend them and run the same command again",
        )
    if summary.loss > summary.max_loss:
        return ChiasmError(
            "embed",
            expected=f"at most {summary.max_loss:.2%} of samples dropped",
            found=f"{summary.dropped} of {summary.samples} ({summary.loss:.2%}), listed above",
            do="mend them, or allow more with --max-loss",
        )
    return None

"""`chiasm embed`: shards into a collection, on a pool of workers.

In come shards and settings, out come one Parquet file and one ledger entry a shard, and a summary.
Kill it anywhere and run the same command again: what is done is skipped, what dead runs left is
swept. `pipeline/make.py` does the same in one process, without Ray.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from chiasm.jobs.cluster import Address, Pool, Recipe, connected, require_address
from chiasm.jobs.config import DEFAULT_ENCODER, Settings
from chiasm.jobs.console import Progress
from chiasm.jobs.signals import STOPPING
from chiasm.pipeline.collection import (
    FOLDERS,
    SHARD_FOLDERS,
    Identity,
    Run,
    create_or_check,
    known_shards,
    read_identity,
    require_no_answers,
)
from chiasm.pipeline.embed_summary import EmbedSummary, summarize
from chiasm.pipeline.make import absolute_name
from chiasm.pipeline.records import Shard
from chiasm.pipeline.storage import Folder, display_name, require_writable
from chiasm.pipeline.worklist import WorkList

USES = ("encoder", "read", "decode", "sound", "batch", "workers", "max_loss")  # groups
NEW_WITH_POCKET = (
    "new collection with the encoder pocket, which knows drawn scenes, not photographs; "
    "for photographs give --encoder hf:google/siglip2-base-patch16-224"
)


@dataclass(frozen=True)
class EmbedRequest:
    """What to embed into what. limit: embed only the first samples, that many in all. reembed:
    shards that were made in an earlier way (read or decoded) are embedded again. allow_damaged:
    shards that are cut or damaged are no failure."""

    shards: Sequence[Shard]
    to: str
    settings: Settings
    address: str | None = None
    limit: int | None = None
    reembed: bool = False
    allow_damaged: bool = False

    @property
    def renewed(self) -> list[str] | None:
        """The shards whose rows may all be made anew, None where they may not."""
        if not self.reembed or self.limit is not None:
            return None
        return [shard.id for shard in self.shards]

    def in_force(self) -> dict[str, Any]:
        """What the run's record keeps of it."""
        request = {"limit": self.limit, "address": self.address, "shards": len(self.shards)}
        return request | self.settings.of(*USES)


def embed_shards(
    request: EmbedRequest,
    show: Callable[[Progress], None] = lambda progress: None,
    *,
    report: Callable[[str], None] = lambda line: None,
) -> EmbedSummary:
    """Embed shards into a collection; raises ChiasmError for what would meet every shard.

    show: called about twice a second. report: called with what a person should know beforehand.
    """
    started = time.monotonic()
    require_writable(request.to)
    folder = Folder(request.to)
    identity = read_identity(folder)
    if identity is None:
        require_no_answers(folder)
    if identity is None and request.settings.encoder.name is None:
        report(NEW_WITH_POCKET)
    settings, encoder = resolve_settings(request.settings, identity, display_name(folder.url))
    request = replace(request, settings=settings)
    address = require_address(request.address)
    with Run(folder, "embed", request.in_force()) as run:
        run.sweep(FOLDERS)
        request = replace(request, shards=known_shards(run, request.shards))
        work = WorkList(
            request.shards, run, settings.embedding, request.limit, reembed=request.reembed
        )
        # That needs no worker, but where the encoder has to say whether rows are made as of today.
        if identity is not None and identity.encoder == encoder and not request.reembed:
            work.skip_finished(identity)
        try:
            if not work.over:
                _embed_unfinished(request, address, encoder, run, work, show)
        except BaseException:
            if identity is None and not work.fingerprint:
                run.withdraw()  # no worker was ever ready: there is no collection
            raise
        finally:
            run.sweep(SHARD_FOLDERS, own=True)
            work.write_summaries()
        wall = time.monotonic() - started
        summary = summarize(
            request.shards, work, wall, settings.max_loss, allow_damaged=request.allow_damaged
        )
        run.finish("failed" if summary.exit_code else "done", summary.as_json())
    return summary


def resolve_settings(
    settings: Settings, identity: Identity | None, where: str
) -> tuple[Settings, str]:
    """The settings with the encoder's name resolved, and that name: the one given, else the
    collection's own, else pocket; in the precision of the collection where there is one already,
    and with its options. where: the collection's name.

    Raises UsageError for an unknown encoder and for other options, before anything is written."""
    own = identity.encoder if identity is not None else DEFAULT_ENCODER
    name = absolute_name(settings.encoder.name or own)
    encoder = replace(settings.encoder, name=name)
    if identity is not None:
        encoder = replace(encoder, precision=identity.precision)
        encoder = encoder.with_options(identity.options, where)
    return replace(settings, encoder=encoder), name


def _embed_unfinished(
    request: EmbedRequest,
    address: Address,
    encoder: str,
    run: Run,
    work: WorkList,
    show: Callable[[Progress], None],
) -> None:
    def on_worker_ready(identity: Identity) -> str:
        existing = create_or_check(run.folder, identity, run.id, request.renewed)
        if not work.fingerprint:
            work.skip_finished(existing)
        return existing.precision

    def tick(pool: Pool) -> None:
        STOPPING.check()
        show(progress_of(request, work, pool))

    settings = request.settings
    recipe = Recipe.of_this_driver(
        encoder, settings.encoder, run.folder.url, run.id, settings.embedding
    )
    with STOPPING.deferred(), connected(address, settings.workers):
        STOPPING.check()
        Pool(recipe, settings.workers, on_worker_ready=on_worker_ready, tick=tick).run(work)


def progress_of(request: EmbedRequest, work: WorkList, pool: Pool) -> Progress:
    """How far the run is; a shard counts while it is at work, or once it is done, never twice."""
    samples, dropped = pool.at_work()
    return Progress(
        shards=len(request.shards),
        done=work.done.shards,
        skipped=work.skipped.shards,
        failed=len(work.quarantined),
        samples=work.done.samples + samples,
        dropped=work.done.dropped.total() + dropped,
        workers_ready=pool.ready,
        workers_asked=len(pool.workers),
        each_reserves=request.settings.workers.resources(),
    )

"""Shards into a collection in this process, without Ray.

`make_collection` is `chiasm embed` for a script or a notebook: the same files to the byte, the same
ledgers, the same resumption. Killed at any moment (SIGKILL, SIGTERM, ctrl-C), it leaves nothing
half-written under a final name; called again, it sweeps what was left and goes on. What it lacks
beside the command: parallel workers, and a deadline for a shard that hangs or kills its process.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from chiasm.pipeline.attempts import record_failure
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
from chiasm.pipeline.editions import EmbedSettings
from chiasm.pipeline.embed import embed_shard
from chiasm.pipeline.embed_summary import EmbedSummary, summarize
from chiasm.pipeline.encoders import (
    Encoder,
    load_encoder,
    split_encoder_name,
    with_absolute_folder,
)
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.records import Shard
from chiasm.pipeline.shards import list_shards
from chiasm.pipeline.storage import Folder, display_name
from chiasm.pipeline.worklist import RECHECK_SECONDS, WorkList

ATTEMPTS = 3


def make_collection(
    shards: str | Path | Sequence[str | Path | Shard],
    to: str | Path,
    encoder: str | Encoder,
    *,
    encoding: EncoderSettings | None = None,
    settings: EmbedSettings | None = None,
    limit: int | None = None,
    reembed: bool = False,
    allow_damaged: bool = False,
) -> EmbedSummary:
    """Embed shards into a collection, one after the other in this process.

    shards: paths, folders, globs, brace ranges and URLs, or `Shard`s. to: the collection's folder
    or URL; shards are added to what is there. encoder: a name as in `--encoder`, or an object.
    encoding: how a named encoder runs, and its options; a collection keeps its own precision.
    limit: embed only the first samples, that many in all. reembed: shards that were made in an
    earlier way are embedded again. allow_damaged: shards that are cut or damaged are no failure.

    A shard that cannot be read is quarantined in its ledger, with the reason, and the rest goes on:
    see `EmbedSummary.failed`, and `summary_error` of `embed_summary.py` for an exception to raise.
    Raises ChiasmError for what would meet every shard: an encoder that cannot be loaded or is not
    the collection's, a target that cannot be written.
    """
    started = time.monotonic()
    shard_list, folder, settings = _list(shards), Folder(str(to)), settings or EmbedSettings()
    existing = read_identity(folder)
    if existing is None:
        require_no_answers(folder)
    if isinstance(encoder, str):
        encoder = _load(encoder, encoding or EncoderSettings(), existing, folder)
    elif encoding is not None:
        raise ValueError("expected encoding with the name of an encoder, found an encoder")
    with Run(folder, "make_collection", {"encoder": encoder.name, "limit": limit}) as run:
        run.sweep(FOLDERS)
        shard_list = known_shards(run, shard_list)
        work = WorkList(shard_list, run, settings, limit, reembed=reembed)
        renewed = [shard.id for shard in shard_list] if reembed and limit is None else None
        identity = create_or_check(folder, Identity.of(encoder, encoding), run.id, renewed)
        work.skip_finished(identity)
        try:
            _embed_all(work, encoder, folder, settings, encoding.threads if encoding else 0)
        finally:
            run.sweep(SHARD_FOLDERS, own=True)
            work.write_summaries()
        wall = time.monotonic() - started
        summary = summarize(shard_list, work, wall, allow_damaged=allow_damaged)
        run.finish("failed" if summary.exit_code else "done", summary.as_json())
    return summary


def _load(name: str, encoding: EncoderSettings, existing: Identity | None, to: Folder) -> Encoder:
    """The encoder of that name, in the precision of the collection and with its options."""
    if existing is not None:
        encoding = replace(encoding, precision=existing.precision)
        encoding = encoding.with_options(existing.options, display_name(to.url))
    return load_encoder(absolute_name(name), encoding)


def _list(shards: str | Path | Sequence[str | Path | Shard]) -> list[Shard]:
    given = [shards] if isinstance(shards, str | Path) else list(shards)
    specs = [str(shard) for shard in given if not isinstance(shard, Shard)]
    return [shard for shard in given if isinstance(shard, Shard)] + (
        list_shards(specs) if specs else []
    )


def _embed_all(
    work: WorkList, encoder: Encoder, folder: Folder, settings: EmbedSettings, threads: int
) -> None:
    while not work.over:
        task = work.take()
        if task is None:  # what is left is held by another run
            work.run.clock.sleep(RECHECK_SECONDS)
            continue
        try:
            entry = embed_shard(
                task.shard,
                encoder,
                folder,
                settings,
                run_id=work.run.id,
                limit=task.limit,
                operator_threads=threads or 1,
            )
        except Exception as error:  # noqa: BLE001  # one bad shard does not stop the rest
            record_failure(work, task, error, ATTEMPTS)
        else:
            work.finish(task, entry)


def absolute_name(name: str) -> str:
    """An encoder's name with its folder resolved, so that the collection opens from any folder;
    UsageError for an unknown family."""
    split_encoder_name(name)
    return with_absolute_folder(name)

"""Shards into a collection in this process, without Ray; and the summary of any embedding run.

`make_collection` is `chiasm embed` for a script or a notebook: the same files to the byte, the same
ledgers, the same resumption. Killed at any moment (SIGKILL, SIGTERM, ctrl-C), it leaves nothing
half-written under a final name; called again, it sweeps what was left and goes on. What it lacks
beside the command: parallel workers, and a deadline for a shard that hangs or kills its process.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chiasm.pipeline.collection import (
    FOLDERS,
    SHARD_FOLDERS,
    Identity,
    LedgerEntry,
    Run,
    create_or_check,
    read_identity,
)
from chiasm.pipeline.editions import EmbedSettings
from chiasm.pipeline.embed import embed_shard
from chiasm.pipeline.encoders import Encoder, load_encoder, split_encoder_name
from chiasm.pipeline.errors import ChiasmError
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.records import Dropped, Shard
from chiasm.pipeline.shards import list_shards
from chiasm.pipeline.storage import Folder
from chiasm.pipeline.worklist import RECHECK_SECONDS, WorkList, record_failure

ATTEMPTS = 3
MAX_LOSS = 0.01


@dataclass(frozen=True)
class EmbedSummary:
    """What the collection holds of the shards that were named, whichever run put it there.

    failed: quarantined shards, `{"shard": URL, "reason"}`. pairs_per_second: this run's rows, from
    the opening of its first shard to its last commit. seconds: busy seconds by stage, summed over
    this run's threads and workers, and `total`, the wall clock. dropped_samples: with their
    shard's URL. max_loss: the share of samples that may be dropped.
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
    dropped_samples: list[tuple[str, Dropped]] = field(default_factory=list)
    max_loss: float = MAX_LOSS

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


def make_collection(
    shards: str | Path | Sequence[str | Path | Shard],
    to: str | Path,
    encoder: str | Encoder,
    *,
    settings: EmbedSettings | None = None,
    limit: int | None = None,
) -> EmbedSummary:
    """Embed shards into a collection, one after the other in this process.

    shards: paths, folders, globs, brace ranges and URLs, or `Shard`s. to: the collection's folder
    or URL; shards are added to what is there. encoder: a name as in `--encoder`, or an object.
    limit: embed only the first samples, that many in all.

    A shard that cannot be read is quarantined in its ledger, with the reason, and the rest goes on:
    see `EmbedSummary.failed`, and `summary_error` for an exception to raise. Raises ChiasmError for
    what would meet every shard: an encoder that cannot be loaded or is not the collection's, a
    target that cannot be written.
    """
    started = time.monotonic()
    shard_list, folder, settings = _list(shards), Folder(str(to)), settings or EmbedSettings()
    if isinstance(encoder, str):
        existing = read_identity(folder)
        compute = EncoderSettings(precision=existing.precision if existing else "auto")
        encoder = load_encoder(absolute_name(encoder), compute)
    with Run(folder, "make_collection", {"encoder": encoder.name, "limit": limit}) as run:
        run.sweep(FOLDERS)
        work = WorkList(shard_list, run, settings, limit)
        work.skip_finished(create_or_check(folder, Identity.of(encoder), run.id))
        try:
            _embed_all(work, encoder, folder, settings)
        finally:
            run.sweep(SHARD_FOLDERS, own=True)
        summary = summarize(shard_list, work, time.monotonic() - started)
        run.finish("failed" if summary.exit_code else "done", summary.as_json())
    return summary


def _list(shards: str | Path | Sequence[str | Path | Shard]) -> list[Shard]:
    given = [shards] if isinstance(shards, str | Path) else list(shards)
    specs = [str(shard) for shard in given if not isinstance(shard, Shard)]
    return [shard for shard in given if isinstance(shard, Shard)] + (
        list_shards(specs) if specs else []
    )


def _embed_all(work: WorkList, encoder: Encoder, folder: Folder, settings: EmbedSettings) -> None:
    while not work.over:
        task = work.take()
        if task is None:  # what is left is held by another run
            time.sleep(RECHECK_SECONDS)
            continue
        try:
            entry = embed_shard(
                task.shard, encoder, folder, settings, run_id=work.run.id, limit=task.limit
            )
        except Exception as error:  # noqa: BLE001  # one bad shard does not stop the rest
            record_failure(work, task, error, ATTEMPTS)
        else:
            work.finish(task, entry)


def absolute_name(name: str) -> str:
    """`hf:./model` -> `hf:/where/it/is/model`, so that the collection opens from any folder."""
    family, model = split_encoder_name(name)
    if model and Path(model).expanduser().is_dir():
        return f"{family}:{Path(model).expanduser().resolve()}"
    return name


def summarize(
    shards: Sequence[Shard], work: WorkList, wall_seconds: float, max_loss: float = MAX_LOSS
) -> EmbedSummary:
    """The summary of a run over these shards, which took so long."""
    mine: list[LedgerEntry] = list(work.done.values())
    all_entries = mine + list(work.skipped.values())
    seconds: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for entry in mine:
        seconds.update(entry.seconds)
    for entry in all_entries:
        reasons.update(entry.reasons())
    spans = [entry.span for entry in mine if entry.span is not None]
    busy = max(last for _, last in spans) - min(first for first, _ in spans) if spans else 0.0
    rows = sum(entry.rows for entry in mine)
    urls = {shard.id: shard.url for shard in shards}
    return EmbedSummary(
        samples=sum(entry.samples for entry in all_entries),
        rows=sum(entry.rows for entry in all_entries),
        dropped=sum(len(entry.dropped) for entry in all_entries),
        done=len(work.done),
        skipped=len(work.skipped),
        failed=[
            {"shard": urls[shard_id], "reason": reason}
            for shard_id, reason in work.quarantined.items()
        ],
        pairs_per_second=round(rows / busy, 2) if busy else 0.0,
        seconds={stage: round(spent, 3) for stage, spent in seconds.items()}
        | {"total": round(wall_seconds, 3)},
        reasons=dict(reasons.most_common()),
        dropped_samples=[
            (entry.source.url, sample) for entry in all_entries for sample in entry.dropped
        ],
        max_loss=max_loss,
    )


def summary_error(summary: EmbedSummary) -> ChiasmError | None:
    """Why the run's exit code is not 0, as one line; None when it is."""
    if summary.failed:
        return ChiasmError(
            "embed",
            expected="every shard embedded",
            found=f"{len(summary.failed)} quarantined (listed above)",
            do="fix them and run the same command again",
        )
    if summary.loss > summary.max_loss:
        return ChiasmError(
            "embed",
            expected=f"at most {summary.max_loss:.2%} of samples dropped",
            found=f"{summary.dropped} of {summary.samples} ({summary.loss:.2%}), listed above",
            do="fix them, or allow more with --max-loss",
        )
    return None

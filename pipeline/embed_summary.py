"""The summary of an embedding run, by `make_collection` or on Ray, and the error that it ends
with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from chiasm.pipeline.errors import ChiasmError
from chiasm.pipeline.records import Dropped, Shard
from chiasm.pipeline.worklist import WorkList

MAX_LOSS = 0.01


@dataclass(frozen=True)
class EmbedSummary:
    """What the collection holds of the shards that were named, whichever run put it there.

    failed: quarantined shards, `{"shard": URL, "reason"}`. pairs_per_second: this run's rows, from
    the opening of its first shard to its last commit. seconds: busy seconds by stage, summed over
    this run's threads and workers, and `total`, the wall clock. dropped_samples: the first of
    them, with their shard's URL; the ledgers have all. max_loss: the share of samples that may be
    dropped.
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


def summarize(
    shards: Sequence[Shard], work: WorkList, wall_seconds: float, max_loss: float = MAX_LOSS
) -> EmbedSummary:
    """The summary of a run over these shards, which took so long."""
    done, skipped = work.done, work.skipped
    first, last = done.span or (0.0, 0.0)
    rows, busy = done.rows, last - first
    reasons = done.dropped + skipped.dropped
    urls = {shard.id: shard.url for shard in shards if shard.id in work.quarantined}
    return EmbedSummary(
        samples=work.samples(),
        rows=done.rows + skipped.rows,
        dropped=reasons.total(),
        done=done.shards,
        skipped=skipped.shards,
        failed=[
            {"shard": urls[shard_id], "reason": reason}
            for shard_id, reason in work.quarantined.items()
        ],
        pairs_per_second=round(rows / busy, 2) if busy else 0.0,
        seconds={stage: round(spent, 3) for stage, spent in done.seconds.items()}
        | {"total": round(wall_seconds, 3)},
        reasons=dict(reasons.most_common()),
        dropped_samples=work.dropped_samples(),
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

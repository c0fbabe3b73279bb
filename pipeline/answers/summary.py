"""The summary of a run over shards, and the error that it ends with."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from chiasm.pipeline.answers.files import AnswersFooter
from chiasm.pipeline.errors import ChiasmError
from chiasm.pipeline.records import Shard


@dataclass
class AnswersSummary:
    """What the folder has of the shards that were named, whichever run put it there.

    samples: of the shards. answers: rows with one. reasons: rows without one, by reason; of these
    lacking: those of samples without a picture or a caption, which are no loss. uncaptioned:
    samples without a caption that got an answer. failed: shards that could not be read or copied,
    damaged: those of which only a part is there, each `{"shard": URL, "reason"}`.
    """

    samples: int = 0
    answers: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    lacking: int = 0
    uncaptioned: int = 0
    done: int = 0
    skipped: int = 0
    failed: list[dict[str, str]] = field(default_factory=list)
    damaged: list[dict[str, str]] = field(default_factory=list)

    def add(self, footer: AnswersFooter, *, skipped: bool) -> None:
        """Count a shard that is done."""
        self.samples += footer.samples
        self.answers += footer.answers
        self.reasons.update(footer.reasons)
        self.lacking += footer.lacking
        self.uncaptioned += footer.uncaptioned
        self.skipped += skipped
        self.done += not skipped
        if footer.damage is not None:
            self.damaged.append({"shard": footer.source.url, "reason": footer.damage})

    def fail(self, shard: Shard, reason: str) -> None:
        """Count a shard that could not be read or copied."""
        self.failed.append({"shard": shard.url, "reason": reason})

    @property
    def dropped(self) -> int:
        """Rows without an answer though nothing was lacking."""
        return self.reasons.total() - self.lacking

    @property
    def loss(self) -> float:
        """The share of them among the rows where nothing was lacking."""
        return self.dropped / max(1, self.answers + self.dropped)

    def as_json(self) -> dict[str, Any]:
        """The shape that docs/formats.md promises."""
        return {
            "samples": self.samples,
            "answers": self.answers,
            "uncaptioned": self.uncaptioned,
            "dropped": self.dropped,
            "lacking": self.lacking,
            "reasons": dict(sorted(self.reasons.items())),
            "shards": {
                "done": self.done,
                "skipped": self.skipped,
                "failed": sorted(self.failed, key=lambda entry: entry["shard"]),
                "damaged": sorted(self.damaged, key=lambda entry: entry["shard"]),
            },
        }

    def error(self, task: str, max_loss: float, *, allow_damaged: bool) -> ChiasmError | None:
        """Why the run's exit code is not 0, as one line; None where it is."""
        if self.failed:
            return ChiasmError(
                task,
                expected="every shard answered",
                found=f"{len(self.failed)} that could not be (named above)",
                do="mend them and run the same command again",
            )
        if self.damaged and not allow_damaged:
            return ChiasmError(
                task,
                expected="whole shards",
                found=f"{len(self.damaged)} cut or damaged (named above): what came before is "
                "answered, the rest is lost",
                do="fetch them again and run the same command, or take what there is with "
                "--allow-damaged",
            )
        if self.loss > max_loss:
            return ChiasmError(
                task,
                expected=f"at most {max_loss:.2%} of answers missing",
                found=f"{self.dropped:,} of {self.answers + self.dropped:,} ({self.loss:.2%}), "
                "named above",
                do="mend the samples, or allow more with --max-loss",
            )
        return None

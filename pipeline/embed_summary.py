"""The summary of an embedding run, by `make_collection` or on Ray, and the error that it ends
with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chiasm.pipeline.errors import ChiasmError
from chiasm.pipeline.records import Dropped, Shard
from chiasm.pipeline.shards import IN_COMPRESSED
from chiasm.pipeline.worklist import WorkList

MAX_LOSS = 0.01


@dataclass(frozen=True)
class EmbedSummary:
    """What the collection holds of the shards that were named, whichever run put it there.

    failed: quarantined shards, `{"shard": URL, "reason"}`. pairs_per_second: this run's rows, from
    the opening of its first shard to its last commit. seconds: busy seconds by stage, summed over
    this run's threads and workers, and `total`, the wall clock. dropped_samples: the first
    hundred, with their shard's URL. max_loss: the share of samples that may be dropped. notes: how
    many there are of each reason. damaged: shards that are cut or damaged, of which only what came
    before is there, `{"shard": URL, "reason"}`. hints: what most rows lack, and what to do, a line
    each.
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
    notes: dict[str, int] = field(default_factory=dict)
    damaged: list[dict[str, str]] = field(default_factory=list)
    allow_damaged: bool = False
    hints: list[str] = field(default_factory=list)

    @property
    def loss(self) -> float:
        """The share of samples that were dropped."""
        return self.dropped / self.samples if self.samples else 0.0

    @property
    def exit_code(self) -> int:
        damaged = self.damaged and not self.allow_damaged
        return 1 if self.failed or damaged or self.loss > self.max_loss else 0

    def as_json(self) -> dict[str, Any]:
        """The shape that docs/formats.md promises."""
        return {
            "samples": self.samples,
            "rows": self.rows,
            "dropped": self.dropped,
            "reasons": self.reasons,
            "notes": self.notes,
            "hints": self.hints,
            "shards": {
                "done": self.done,
                "skipped": self.skipped,
                "failed": self.failed,
                "damaged": self.damaged,
            },
            "pairs_per_second": self.pairs_per_second,
            "seconds": self.seconds,
        }


def summarize(
    shards: Sequence[Shard],
    work: WorkList,
    wall_seconds: float,
    max_loss: float = MAX_LOSS,
    *,
    allow_damaged: bool = False,
) -> EmbedSummary:
    """The summary of a run over these shards, which took so long."""
    done, skipped = work.done, work.skipped
    first, last = done.span or (0.0, 0.0)
    rows, busy = done.rows, last - first
    reasons, notes = done.dropped + skipped.dropped, done.notes + skipped.notes
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
        notes=dict(notes.most_common()),
        damaged=done.damaged + skipped.damaged,
        allow_damaged=allow_damaged,
        hints=reading_hints(done.rows + skipped.rows, notes, work.note_details()),
    )


HINTS = {  # reason of a note -> what is odd about so many, and what to do
    "no_caption_field": "rows lack the field asked for ({detail}); name one that json has by "
    "--caption-field, or leave that out",
    "no_caption": "rows have no caption{cause}",
    "no_picture": "rows have no picture; picture and caption belong together where their names are "
    "the same up to the first dot (0001.jpg, 0001.txt)",
    "no_member": "members of another modality are missing ({detail} in the first such row); the "
    "encoder names the extensions that it reads, and a member belongs to the sample of its name up "
    "to the first dot (0001.wav, 0001.txt)",
    "no_pair": "rows have a picture or a caption alone; both belong together where their names are "
    "the same up to the first dot (0001.jpg, 0001.txt), or in a folder for each sample with one "
    "picture (0001/image.jpg, 0001/caption.txt)",
    "bad_text": "texts are neither UTF-8 nor UTF-16 with a mark ({detail}); convert them by iconv "
    "-f ENCODING -t UTF-8, such as GBK, BIG5 or UTF-16LE",
    "bad_json": "json members cannot be read ({detail}); check how they were written",
    "text_truncated": "captions are longer than the model takes ({detail} in the first such row); "
    "what is beyond is not seen: take an encoder for longer texts, or shorter captions",
    "late_member": "members came after their sample had gone on ({detail}); write the members of a "
    "sample one behind the other{unpack}",
}
SHARD_HINTS = {  # the same for what is odd about one shard already
    "zeros_after_end": "shards end in more zeros than tar writes ({detail}); their downloads may "
    "be cut: compare size and checksum with the source",
    "data_after_end": "shards have data behind their end, which is not read ({detail}); fetch them "
    "again if it should be members",
    "cut_after_end": "compressed shards are cut behind their last member ({detail}); what was "
    "joined to them would be lost: compare size and checksum with the source",
    "archives_joined": "shards are several tars in one, all of them read ({detail}); if nobody "
    "joined them, members may be missing: compare size and checksum with the source",
}
_WITH_TEXT = {"txt", "caption", "text"}  # extensions
_SOME = 10  # of rows of which a tenth lacks the one and most lack the other, the pairs are apart


def reading_hints(rows: int, notes: Counter[str], details: Mapping[str, str]) -> list[str]:
    """What is odd about more than half of the rows, or about a shard, a line each. notes: how many
    there are of each reason; details: of the first of each."""
    counts = Counter(notes)
    most = {reason for reason in HINTS if counts[reason] * 2 > rows}
    lack_one = counts["no_caption"], counts["no_picture"]
    if sum(lack_one) * 2 > rows and (max(lack_one) * 2 <= rows or min(lack_one) * _SOME >= rows):
        counts["no_pair"] = sum(lack_one)
        most = most - {"no_caption", "no_picture"} | {"no_pair"}
    if "no_caption_field" in most:
        most -= {"no_caption"}  # whose cause that is
    late = details.get("late_member", "").endswith(IN_COMPRESSED)
    values = {
        "cause": _cause_of_no_caption(details.get("no_caption", "")),
        "unpack": ", or unpack the shards" if late else "",
    }
    return [
        f"{counts[reason]:,} {hint.format(detail=details.get(reason, ''), **values)} "
        f"({rows:,} rows in all)"
        for reason, hint in HINTS.items()
        if reason in most
    ] + [
        f"{counts[reason]:,} {hint.format(detail=details.get(reason, ''))}"
        for reason, hint in SHARD_HINTS.items()
        if counts[reason]
    ]


def _cause_of_no_caption(extensions: str) -> str:
    """extensions: of the first row without caption."""
    if _WITH_TEXT & set(extensions.split(", ")):
        return (
            f": the texts beside their pictures ({extensions}) are empty, or too large to be read"
        )
    members = f" (the first has members {extensions})" if extensions else ""
    return (
        f"{members}; captions are read from .txt, .caption and .text members and from json's "
        "caption and captions, others by --caption-field"
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
    if summary.damaged and not summary.allow_damaged:
        return ChiasmError(
            "embed",
            expected="whole shards",
            found=f"{len(summary.damaged)} cut or damaged (listed above): what came before is "
            "embedded, the rest is lost",
            do="fetch them again and run the same command, or take what there is with "
            "--allow-damaged",
        )
    if summary.loss > summary.max_loss:
        return ChiasmError(
            "embed",
            expected=f"at most {summary.max_loss:.2%} of samples dropped",
            found=f"{summary.dropped} of {summary.samples} ({summary.loss:.2%}), listed above",
            do="fix them, or allow more with --max-loss",
        )
    return None

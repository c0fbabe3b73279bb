"""Counts over the shards of a run, in memory that does not grow with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from chiasm.pipeline.collection import LedgerEntry, ShardSummary
from chiasm.pipeline.records import Dropped

# The entries of shards, by their ids.
ReadEntries = Callable[[Sequence[str]], Iterator[LedgerEntry | None]]
DROPS_KEPT = 100  # dropped samples that are kept with their details; more are only counted


@dataclass
class Totals:
    """shards, rows: how many. dropped, notes: how many by reason. rules, decodings: shards by their
    rules of reading and by their way of decoding. damaged: shards of which the rest is lost,
    `{"shard": URL, "reason"}`. note_details: by reason, that of the first note. drops: the first
    dropped samples, with the URL of their shard. seconds: busy seconds by stage. span: opening of
    the first shard and commit of the last, in seconds since the epoch."""

    shards: int = 0
    rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    rules: Counter[int] = field(default_factory=Counter)
    decodings: Counter[int] = field(default_factory=Counter)
    damaged: list[dict[str, str]] = field(default_factory=list)
    note_details: dict[str, str] = field(default_factory=dict)
    drops: list[tuple[str, Dropped]] = field(default_factory=list)
    seconds: Counter[str] = field(default_factory=Counter)
    span: tuple[float, float] | None = None

    @property
    def samples(self) -> int:
        return self.rows + self.dropped.total()

    def add(self, summary: ShardSummary) -> None:
        """Add a shard by its counts."""
        self.shards += 1
        self.rows += summary.rows
        self.dropped.update(summary.dropped)
        self.notes.update(summary.notes)
        self.rules[summary.rules] += 1
        self.decodings[summary.decoding] += 1
        if summary.damage is not None:
            self.damaged.append({"shard": summary.source.url, "reason": summary.damage})

    def add_details(self, entry: LedgerEntry) -> None:
        """Add what a summary does not have: seconds, span, dropped samples and details of notes."""
        self.seconds.update(entry.seconds)
        if entry.span is not None:
            first, last = self.span or entry.span
            self.span = (min(first, entry.span[0]), max(last, entry.span[1]))
        self.add_note_details(entry)
        self.add_drops(entry)

    def add_note_details(self, entry: LedgerEntry) -> None:
        """Add the detail of each reason's first note, with the shard where it is about that."""
        for note in entry.notes:
            detail = note.detail if note.key else f"{entry.source.url}: {note.detail}"
            self.note_details.setdefault(note.reason, detail)

    def add_drops(self, entry: LedgerEntry) -> None:
        """Add dropped samples, up to DROPS_KEPT in all."""
        kept = entry.dropped[: max(0, DROPS_KEPT - len(self.drops))]
        self.drops += [(entry.source.url, dropped) for dropped in kept]


@dataclass
class SkippedTotals(Totals):
    """Of shards that were done before, whose entries were not read: their details are read when a
    run ends. with_drops: the first shards that have dropped samples. with_notes: by reason, a shard
    that has such notes."""

    with_drops: list[str] = field(default_factory=list)
    with_notes: dict[str, str] = field(default_factory=dict)

    def add(self, summary: ShardSummary) -> None:
        """Add a shard by its counts."""
        super().add(summary)
        for reason in summary.notes:
            self.with_notes.setdefault(reason, summary.source.id)
        if summary.dropped and len(self.with_drops) < DROPS_KEPT:
            self.with_drops.append(summary.source.id)

    def read_drops(
        self, known: Sequence[tuple[str, Dropped]], read: ReadEntries
    ) -> list[tuple[str, Dropped]]:
        """The known dropped samples and, up to DROPS_KEPT in all, those of these shards."""
        found = Totals(drops=[*known])
        missing = self.with_drops[: DROPS_KEPT - len(known)]  # each has one at least
        for entry in read(missing):
            if entry is not None:
                found.add_drops(entry)
        return found.drops

    def read_note_details(self, known: Mapping[str, str], read: ReadEntries) -> dict[str, str]:
        """By reason, the detail of a note: those known, and of other reasons those of these
        shards."""
        found = Totals(note_details={**known})
        missing = {self.with_notes[why] for why in self.with_notes.keys() - known.keys()}
        for entry in read(sorted(missing)):
            if entry is not None:
                found.add_note_details(entry)
        return found.note_details

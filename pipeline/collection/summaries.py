"""What the ledgers say, as counts and in few files: `summaries/<run id>-0000.json`.

A run writes what it has committed into such files as it goes, so that `status` and the next run do
not read a ledger entry and a footer for every shard. Nothing rests on them: a summary counts only
while both listings, of `ledger/` and of `embeddings/`, show the very files that it was made from,
by size and version. Of any other shard the files themselves are read.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from chiasm.pipeline.collection.current_entries import current_entry
from chiasm.pipeline.collection.embeddings import find_embedding, stored_parquet_name
from chiasm.pipeline.collection.ledger import (
    LedgerEntry,
    ledger_name,
    made_of,
    shard_of_entry,
    shard_of_failure,
)
from chiasm.pipeline.collection.parquet_schema import parquet_name, shard_id_of
from chiasm.pipeline.errors import CollectionError, StorageError
from chiasm.pipeline.records import Shard
from chiasm.pipeline.storage import Folder, Stat
from chiasm.pipeline.stored_records import read_record
from chiasm.pipeline.timing import Clock

FOLDER = "summaries"
SCHEMA = 1
LOG = logging.getLogger(__name__)
_PART = re.compile(rf"{FOLDER}/[^./]+-[0-9]{{4,}}\.json")
# Few enough files for `status`, and so small that rewriting the last one costs little.
SHARDS_OF_A_PART = 5_000
SHARDS_OF_A_WRITE = 512  # a killed run leaves at most so many without a summary,
SECONDS_OF_A_WRITE = 30.0  # and at most those of so many seconds
FEW_PARTS = 8  # more, each less than half full, are put together by the next run


@dataclass(frozen=True, slots=True)
class ShardFile:
    """Size and version of a file, as `Stat` has them."""

    size: int
    version: str

    @classmethod
    def of(cls, stat: Stat | None) -> ShardFile | None:
        return None if stat is None else cls(stat.size, stat.version)


@dataclass(frozen=True, slots=True)
class ShardSummary:
    """A ledger entry as counts, and the files that it was made from. dropped, notes: how many by
    reason. quarantined: why the shard was given up, None where it is done. ledger, embeddings: its
    entry and its Parquet file. unfinished: whether the two do not agree; such a summary is never
    stored. embedded_from, rules, decoding, damage: see `LedgerEntry`."""

    source: Shard
    edition: str
    rows: int
    dropped: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    quarantined: str | None = None
    ledger: ShardFile | None = None
    embeddings: ShardFile | None = None
    unfinished: bool = False
    embedded_from: Shard | None = None
    rules: int = 1
    decoding: int = 1
    damage: str | None = None

    @classmethod
    def of(cls, entry: LedgerEntry) -> ShardSummary:
        return cls(
            entry.source,
            entry.edition,
            entry.rows,
            entry.reasons(),
            entry.note_reasons(),
            entry.quarantined,
            embedded_from=entry.embedded_from,
            rules=entry.rules,
            decoding=entry.decoding,
            damage=entry.damage,
        )

    def with_files(self, ledger: Stat | None, embeddings: Stat | None) -> ShardSummary:
        return replace(self, ledger=ShardFile.of(ledger), embeddings=ShardFile.of(embeddings))

    def made_of(self, shard: Shard) -> Shard:
        """The shard that decides the edition of what is embedded of `shard` now."""
        return made_of(shard, self.source, self.embedded_from)

    @property
    def done(self) -> bool:
        return self.quarantined is None and not self.unfinished

    @property
    def samples(self) -> int:
        return self.rows + sum(self.dropped.values())


@dataclass(frozen=True)
class Part:
    """One file of summaries."""

    run: str
    shards: tuple[ShardSummary, ...]


@dataclass
class ShardFiles:
    """The files of all shards at one moment, by shard id. failures: shards that have a reason
    beside their entry why they were given up."""

    ledgers: dict[str, Stat]
    embeddings: dict[str, Stat]
    failures: set[str]

    @classmethod
    def list(cls, folder: Folder) -> ShardFiles:
        """By two listings at the same time."""
        ledgers, embeddings = folder.map_concurrent(folder.list_stats, ["ledger", "embeddings"])
        return cls(
            {shard: stat for name, stat in ledgers.items() if (shard := shard_of_entry(name))},
            _by_shard(embeddings),
            {shard for name in ledgers if (shard := shard_of_failure(name))},
        )

    def match(self, summary: ShardSummary) -> bool:
        """Whether these are the files that a summary was made from."""
        shard_id = summary.source.id
        return summary.ledger is not None and (summary.ledger, summary.embeddings) == (
            ShardFile.of(self.ledgers.get(shard_id)),
            ShardFile.of(self.embeddings.get(shard_id)),
        )


def _by_shard(embeddings: dict[str, Stat]) -> dict[str, Stat]:
    found: dict[str, Stat] = {}
    for name, stat in embeddings.items():
        shard_id = shard_id_of(name)
        # A shard may have a file of an earlier name as well, which does not count then.
        if shard_id and (shard_id not in found or name == parquet_name(shard_id)):
            found[shard_id] = stat
    return found


@dataclass
class Survey:
    """All summaries of a collection that hold now. parts: the file of each, and how many of its
    shards it still describes."""

    folder: Folder
    files: ShardFiles
    parts: dict[str, int] = field(default_factory=dict)

    def summaries(self) -> Iterator[ShardSummary]:
        """Those of the files in `summaries/`, each shard once."""
        seen: set[str] = set()
        names = [name for name in self.folder.list(FOLDER) if _PART.fullmatch(name)]
        parts = self.folder.map_concurrent(lambda name: _read_part(self.folder, name), names)
        for name, part in zip(names, parts, strict=True):
            if part is None:
                continue
            self.parts[name] = 0
            for summary in part.shards:
                if summary.source.id not in seen and self.files.match(summary):
                    seen.add(summary.source.id)
                    self.parts[name] += 1
                    yield summary

    def read(
        self, shard_ids: Sequence[str], *, skip_damaged: bool
    ) -> Iterator[ShardSummary | None]:
        """The summaries of these shards from their own files; None for a shard without an entry of
        its own, and with `skip_damaged` for one whose files are damaged. Raises CollectionError."""

        def read(shard_id: str) -> ShardSummary | None:
            with suppress(CollectionError) if skip_damaged else nullcontext():
                return self._read(shard_id)
            return None

        return self.folder.map_concurrent(read, shard_ids)

    def _read(self, shard_id: str) -> ShardSummary | None:
        # The files as they were listed: where one was replaced since, the summary holds for none.
        ledger, embeddings = self.files.ledgers.get(shard_id), self.files.embeddings.get(shard_id)
        entry = None if ledger is None else current_entry(self.folder, shard_id)
        if entry is None or entry.source.id != shard_id:
            return None
        summary = ShardSummary.of(entry).with_files(ledger, embeddings)
        if entry.quarantined is not None:
            return summary
        # A Parquet file that has come since would be missing in the summary, which would go on to
        # hold once that file is gone.
        whole = embeddings is not None and find_embedding(self.folder, shard_id) is not None
        return summary if whole else replace(summary, unfinished=True)


class SummaryWriter:
    """Writes the summaries of one run, part by part; only the last part is written again."""

    def __init__(self, folder: Folder, run_id: str, clock: Clock) -> None:
        self._folder, self._run_id, self._clock = folder, run_id, clock
        self._number = 0
        self._lines: list[str] = []  # of the last part
        self._unwritten = 0
        self._written = clock.monotonic()

    def add(self, summary: ShardSummary) -> None:
        """Add a shard that is done or given up; written at once, or with others later."""
        self._lines.append(json.dumps(_fields(summary), ensure_ascii=False))
        self._unwritten += 1
        full = len(self._lines) == SHARDS_OF_A_PART
        late = self._clock.monotonic() - self._written >= SECONDS_OF_A_WRITE
        if full or late or self._unwritten >= SHARDS_OF_A_WRITE:
            self.write()
        if full:
            self._number, self._lines = self._number + 1, []

    def write(self) -> None:
        """Write what has been added since the last write."""
        if self._unwritten:
            head = json.dumps({"schema": SCHEMA, "run": self._run_id})
            text = f'{head[:-1]}, "shards": [\n' + ",\n".join(self._lines) + "\n]}\n"
            name = f"{FOLDER}/{self._run_id}-{self._number:04d}.json"
            try:
                self._folder.write_whole(name, text.encode("utf-8", "surrogatepass"), self._run_id)
            except StorageError as error:  # nothing rests on it; the part is written again
                LOG.warning("summaries are not written: %s", error)
        self._unwritten, self._written = 0, self._clock.monotonic()

    def put_together(self, survey: Survey, is_live: Callable[[str], bool]) -> None:
        """Take over what small parts of runs that have ended still describe, where there are many,
        and remove those. survey: one that has given all its summaries. is_live: by a run's id."""
        small = [
            name
            for name, valid in survey.parts.items()
            if valid < SHARDS_OF_A_PART // 2 and not is_live(run_of_part(name))
        ]
        if len(small) <= FEW_PARTS:
            return
        for part in self._folder.map_concurrent(lambda n: _read_part(self._folder, n), small):
            for summary in filter(survey.files.match, () if part is None else part.shards):
                self.add(summary)
        self.write()
        for name in small:
            self._folder.remove(name)


def run_of_part(name: str) -> str:
    """The id of the run that wrote a file of summaries."""
    return name.removeprefix(f"{FOLDER}/").removesuffix(".json").rpartition("-")[0]


def stat_files(folder: Folder, shard_id: str) -> tuple[Stat | None, Stat | None]:
    """A shard's ledger entry and its Parquet file as they are now."""
    ledger, embeddings = folder.map_concurrent(
        folder.stat, [ledger_name(shard_id), stored_parquet_name(folder, shard_id)]
    )
    return ledger, embeddings


def _fields(summary: ShardSummary) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "source": asdict(summary.source),
        "edition": summary.edition,
        "rows": summary.rows,
    }
    for name in ("dropped", "notes", "quarantined", "damage"):
        if value := getattr(summary, name):
            fields[name] = value
    if summary.embedded_from is not None:
        fields["embedded_from"] = asdict(summary.embedded_from)
    for name in ("rules", "decoding"):
        if (version := getattr(summary, name)) > 1:
            fields[name] = version
    for name, file in (("ledger", summary.ledger), ("embeddings", summary.embeddings)):
        if file is not None:
            fields[name] = {"size": file.size, "version": file.version}
    return fields


def _read_part(folder: Folder, name: str) -> Part | None:
    """None where it is damaged, newer or gone: the shards' own files are read instead."""
    try:
        what = "summaries of shards"
        return read_record(folder.read_bytes(name), name, Part, what=what, schema=SCHEMA)
    except (CollectionError, StorageError):
        return None

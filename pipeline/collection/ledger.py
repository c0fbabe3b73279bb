"""The ledger: what became of every sample of a shard, counted as it happens.

`Tally` counts what `read_samples` and the decoder yield; a `LedgerEntry` for each shard is stored
as `ledger/<shard id>.json`. rows + dropped = samples, always. The entry is written before the
Parquet file is renamed into place, so a Parquet file never exists without its entry; a pair that
disagrees (a kill between the two writes, or a changed shard) counts as not done.

Where a shard that has whole rows is embedded anew and given up, its entry stays that of its rows.
Why it was given up is written beside it, as `ledger/<shard id>.failed.json`, until it is embedded.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Annotated

from pydantic import Field

from chiasm.pipeline.errors import StorageError
from chiasm.pipeline.records import DAMAGES, Dropped, Note, Shard
from chiasm.pipeline.storage import Folder, display_name, is_temporary
from chiasm.pipeline.stored_records import read_record

SCHEMA = 1
_SUFFIX, _FAILED = ".json", ".failed.json"


MOST_KEPT = 100  # dropped samples, or notes, kept of one reason of a shard: the rest is counted


class Tally:
    """Counts of one shard's samples. Used by one thread, the one that writes the rows.

    dropped, notes: the first MOST_KEPT of each reason; drop_counts, note_counts: all, by reason."""

    def __init__(self) -> None:
        self.rows = 0
        self.dropped: list[Dropped] = []
        self.notes: list[Note] = []
        self.drop_counts: Counter[str] = Counter()
        self.note_counts: Counter[str] = Counter()
        self._kept: Counter[tuple[str, str]] = Counter()

    @property
    def dropped_count(self) -> int:
        """How many samples were dropped."""
        return self.drop_counts.total()

    @property
    def samples(self) -> int:
        return self.rows + self.dropped_count

    def keep(self, rows: int) -> None:
        self.rows += rows

    def drop(self, dropped: Dropped) -> None:
        self.drop_counts[dropped.reason] += 1
        if self._is_kept(dropped.stage, dropped.reason):
            self.dropped.append(dropped)

    def note(self, note: Note) -> None:
        self.note_counts[note.reason] += 1
        if self._is_kept("note", note.reason):
            self.notes.append(note)

    def _is_kept(self, kind: str, reason: str) -> bool:
        self._kept[kind, reason] += 1
        return self._kept[kind, reason] <= MOST_KEPT


@dataclass(frozen=True)
class LedgerEntry:
    """What became of one shard.

    source: the shard as it was listed. edition: see `chiasm.pipeline.editions.edition_of`. seconds:
    busy seconds by stage. span: wall clock (opening, commit) in seconds since the epoch.
    quarantined: why the shard could not be embedded, None when it was; attempts: how many were
    made. dropped, notes: at most MOST_KEPT of a reason; drop_counts, note_counts: how many there
    are by reason, empty in entries that have all. rules: the version of the rules of reading.
    """

    source: Shard
    edition: str
    rows: int
    dropped: tuple[Dropped, ...] = ()
    notes: tuple[Note, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    span: tuple[float, float] | None = None
    quarantined: Annotated[str | None, Field(alias="set_aside")] = None
    attempts: int = 1
    drop_counts: dict[str, int] = field(default_factory=dict)
    note_counts: dict[str, int] = field(default_factory=dict)
    rules: int = 1

    @property
    def samples(self) -> int:
        return self.rows + self.dropped_count

    @property
    def dropped_count(self) -> int:
        """How many samples were dropped."""
        return sum(self.reasons().values())

    @property
    def damage(self) -> str | None:
        """Why the rest of the shard is lost, None where nothing is."""
        for dropped in self.dropped:
            if dropped.stage == "read" and dropped.reason in DAMAGES:
                # Rules 1 dropped a sample where only the end mark was missing.
                if dropped.detail.startswith("no end mark at byte"):
                    return None
                where = f" in sample {dropped.key}" if dropped.key else ""
                return f"{dropped.reason}{where}: {dropped.detail}"
        return None

    def reasons(self) -> dict[str, int]:
        """How many samples were dropped under each reason, most frequent first."""
        return _counts(self.drop_counts, self.dropped)

    def note_reasons(self) -> dict[str, int]:
        """How many notes there are of each reason, most frequent first."""
        return _counts(self.note_counts, self.notes)

    def to_json(self) -> bytes:
        """The file's content."""
        fields = {"schema": SCHEMA, "samples": self.samples}
        for key, value in asdict(self).items():
            fields["set_aside" if key == "quarantined" else key] = value
        text = json.dumps(fields, ensure_ascii=False, indent=1)
        return text.encode("utf-8", "surrogatepass") + b"\n"

    @classmethod
    def from_json(cls, data: bytes, name: str) -> LedgerEntry:
        """The entry in a file; CollectionError, which names `name`, for a damaged one."""
        do = "delete the file and run chiasm embed again"
        return read_record(data, name, cls, what="a ledger entry", do=do, schema=SCHEMA)


def _counts(
    counts: dict[str, int], records: tuple[Dropped, ...] | tuple[Note, ...]
) -> dict[str, int]:
    return dict(Counter(counts or (item.reason for item in records)).most_common())


def ledger_name(shard_id: str) -> str:
    return f"ledger/{shard_id}{_SUFFIX}"


def failure_name(shard_id: str) -> str:
    return f"ledger/{shard_id}{_FAILED}"


def shard_of_entry(name: str) -> str | None:
    """The id of the shard whose entry a file of `ledger/` is; None for other files."""
    base = name.rpartition("/")[2]
    if base.endswith(_FAILED) or not base.endswith(_SUFFIX) or is_temporary(name):
        return None
    return base.removesuffix(_SUFFIX)


def shard_of_failure(name: str) -> str | None:
    """The same for the file beside it, which says why the shard was given up."""
    base = name.rpartition("/")[2]
    return base.removesuffix(_FAILED) if base.endswith(_FAILED) else None


def write_entry(folder: Folder, entry: LedgerEntry, run_id: str) -> None:
    """Write a shard's entry atomically."""
    folder.write_whole(ledger_name(entry.source.id), entry.to_json(), run_id)


def write_failure(folder: Folder, entry: LedgerEntry, run_id: str) -> None:
    """Write why a shard that has whole rows was given up, beside its entry."""
    folder.write_whole(failure_name(entry.source.id), entry.to_json(), run_id)


def read_entry(folder: Folder, shard_id: str) -> LedgerEntry | None:
    """The entry of a shard, None where there is none; raises CollectionError for a damaged one."""
    return _read(folder, ledger_name(shard_id))


def read_failure(folder: Folder, shard_id: str) -> LedgerEntry | None:
    """Why a shard that has whole rows was given up, None where it was not. Raises as
    `read_entry`."""
    return _read(folder, failure_name(shard_id))


def _read(folder: Folder, name: str) -> LedgerEntry | None:
    data = read_or_none(folder, name)
    if data is None:
        return None
    return LedgerEntry.from_json(data, display_name(folder.url_of(name)))


def read_or_none(folder: Folder, name: str) -> bytes | None:
    """A file's content, None where there is no such file: one request where it is there."""
    try:
        return folder.read_bytes(name)
    except StorageError:
        if folder.exists(name):
            raise
        return None


def entries(folder: Folder) -> Iterator[LedgerEntry]:
    """Every entry of a collection, by shard id."""
    found = map(shard_of_entry, folder.list("ledger"))
    shard_ids = [shard_id for shard_id in found if shard_id is not None]
    for entry in folder.map_concurrent(lambda shard_id: read_entry(folder, shard_id), shard_ids):
        if entry is not None:
            yield entry

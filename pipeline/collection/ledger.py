"""The ledger: what became of every sample of a shard, counted as it happens.

`Tally` counts what `read_samples` and the decoder yield; a `LedgerEntry` for each shard is stored
as `ledger/<shard id>.json`. rows + dropped = samples, always. The entry is written before the
Parquet file is renamed into place, so a Parquet file never exists without its entry; a pair that
disagrees (a kill between the two writes, or a changed shard) counts as not done, unless the entry's
`replaced` agrees with the rows: `current_entries.py`.

Where a shard that has whole rows is embedded anew and given up, its entry stays that of its rows.
Why it was given up is written beside it, as `ledger/<shard id>.failed.json`, until it is embedded.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from pydantic import Field, FiniteFloat

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

    def dropped_in(self, stage: str) -> int:
        """How many samples were dropped in a stage."""
        return sum(count for (kind, _), count in self._kept.items() if kind == stage)

    def refuse(self, dropped: Dropped, missing: Iterable[str]) -> None:
        """Drop a sample that was kept so far. Its notes go with it, since only a row has notes.
        missing: the reasons why it has no input of some modalities, each of which was noted."""
        self.drop(dropped)
        own = [note for note in self.notes if note.key == dropped.key]
        self.notes = [note for note in self.notes if note.key != dropped.key]
        self.note_counts.subtract({note.reason for note in own} | set(missing))

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
    made. embedded_from: the shard as it was embedded, stored where it has been relocated since.
    dropped, notes: at most MOST_KEPT of a reason; drop_counts, note_counts: how many there are by
    reason, empty in entries that have all. rules: the version of the rules of reading. decoding:
    that of the way from bytes to pixels.
    """

    source: Shard
    edition: str
    rows: int
    dropped: tuple[Dropped, ...] = ()
    notes: tuple[Note, ...] = ()
    seconds: dict[str, FiniteFloat] = field(default_factory=dict)
    span: tuple[FiniteFloat, FiniteFloat] | None = None
    quarantined: Annotated[str | None, Field(alias="set_aside")] = None
    attempts: int = 1
    embedded_from: Shard | None = None
    replaced: LedgerEntry | None = None
    drop_counts: dict[str, int] = field(default_factory=dict)
    note_counts: dict[str, int] = field(default_factory=dict)
    rules: int = 1
    decoding: int = 1

    @property
    def as_embedded(self) -> Shard:
        """The shard as it was when its rows were made; its edition is of that."""
        return self.embedded_from or self.source

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
        return _to_bytes(self._fields())

    def _fields(self) -> dict[str, Any]:
        fields: dict[str, Any] = {"schema": SCHEMA, "samples": self.samples}
        for key, value in asdict(self).items():
            fields["set_aside" if key == "quarantined" else key] = value
        if self.embedded_from is None:
            del fields["embedded_from"]
        del fields["replaced"]
        if self.replaced is not None:
            fields["replaced"] = self.replaced._fields()
        return fields

    @classmethod
    def from_json(cls, data: bytes, name: str) -> LedgerEntry:
        """The entry in a file; CollectionError, which names `name`, for a damaged one."""
        do = "delete the file and run chiasm embed again"
        return read_record(data, name, cls, what="a ledger entry", do=do, schema=SCHEMA)


def made_of(shard: Shard, source: Shard, embedded_from: Shard | None) -> Shard:
    """The shard that decides the edition of what is embedded of `shard` now: the one that was
    embedded, where `shard` is what that was relocated to (`source`), unchanged; else itself."""
    unchanged = (shard.size, shard.version) == (source.size, source.version)
    return embedded_from if embedded_from is not None and unchanged else shard


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


def rewrite_entry(folder: Folder, name: str, changes: Mapping[str, Any], run_id: str) -> None:
    """Write an entry, by its file's name, again with other fields, None for those to leave out.
    Fields that this version does not know are kept. Atomic."""
    _write_changed(folder, name, _fields_of(folder.read_bytes(name)), changes, run_id)


def rewrite_current_entry(
    folder: Folder, current: LedgerEntry, changes: Mapping[str, Any], run_id: str
) -> None:
    """The same for the entry of a shard: what is changed is `current`, the stored entry or the one
    that it replaces."""
    name = ledger_name(current.source.id)
    data = folder.read_bytes(name)
    fields = _fields_of(data)
    replaced = fields.pop("replaced", None)
    if current == LedgerEntry.from_json(data, display_name(folder.url_of(name))).replaced:
        fields = replaced
    _write_changed(folder, name, fields, changes, run_id)


def _fields_of(data: bytes) -> dict[str, Any]:
    return json.loads(data.decode("utf-8", "surrogatepass"))


def _write_changed(
    folder: Folder, name: str, fields: dict[str, Any], changes: Mapping[str, Any], run_id: str
) -> None:
    left_out = {key for key, value in changes.items() if value is None}
    fields = {key: value for key, value in {**fields, **changes}.items() if key not in left_out}
    folder.write_whole(name, _to_bytes(fields), run_id)


def _to_bytes(fields: Mapping[str, Any]) -> bytes:
    text = json.dumps(fields, ensure_ascii=False, indent=1)
    return text.encode("utf-8", "surrogatepass") + b"\n"


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
        # Where it is there by now, it was put in between, or it cannot be read this time either.
        return folder.read_bytes(name) if folder.exists(name) else None


def entry_ids(folder: Folder) -> list[str]:
    """The ids of the shards that have an entry, sorted."""
    return [shard_id for name in folder.list("ledger") if (shard_id := shard_of_entry(name))]

"""The ledger: what became of every sample of a shard, counted as it happens.

`Tally` counts what `read_samples` and the decoder yield; a `LedgerEntry` for each shard is stored
as `ledger/<shard id>.json`. rows + dropped = samples, always. The entry is written before the
Parquet file is renamed into place, so a Parquet file never exists without its entry; a pair that
disagrees (a kill between the two writes, or a changed shard) counts as not done.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from chiasm.pipeline.errors import CollectionError
from chiasm.pipeline.records import Dropped, Note, Shard
from chiasm.pipeline.storage import Folder, display_name

SCHEMA = 1


class Tally:
    """Counts of one shard's samples. Used by one thread, the one that writes the rows."""

    def __init__(self) -> None:
        self.rows = 0
        self.dropped: list[Dropped] = []
        self.notes: list[Note] = []

    @property
    def samples(self) -> int:
        return self.rows + len(self.dropped)

    def keep(self, rows: int) -> None:
        self.rows += rows

    def drop(self, dropped: Dropped) -> None:
        self.dropped.append(dropped)

    def note(self, note: Note) -> None:
        self.notes.append(note)


@dataclass(frozen=True)
class LedgerEntry:
    """What became of one shard.

    source: the shard as it was listed. edition: see `chiasm.pipeline.editions.edition_of`. seconds:
    busy seconds by stage. span: wall clock (opening, commit) in seconds since the epoch.
    quarantined: why the shard could not be embedded, None when it was; attempts: how many were
    made. embedded_from: the shard as it was embedded, stored where it has been relocated since.
    """

    source: Shard
    edition: str
    rows: int
    dropped: tuple[Dropped, ...] = ()
    notes: tuple[Note, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    span: tuple[float, float] | None = None
    quarantined: str | None = None  # `set_aside` in the file
    attempts: int = 1
    embedded_from: Shard | None = None

    @property
    def as_embedded(self) -> Shard:
        """The shard as it was when its rows were made; its edition is of that."""
        return self.embedded_from or self.source

    @property
    def samples(self) -> int:
        return self.rows + len(self.dropped)

    def reasons(self) -> dict[str, int]:
        """How many samples were dropped under each reason, most frequent first."""
        return dict(Counter(dropped.reason for dropped in self.dropped).most_common())

    def to_json(self) -> bytes:
        """The file's content."""
        fields = {"schema": SCHEMA, "samples": self.samples}
        for key, value in asdict(self).items():
            fields["set_aside" if key == "quarantined" else key] = value
        if self.embedded_from is None:
            del fields["embedded_from"]
        return _to_bytes(fields)

    @classmethod
    def from_json(cls, data: bytes, name: str) -> LedgerEntry:
        """The entry in a file; CollectionError, which names `name`, for a damaged one."""
        try:
            fields = json.loads(data)
            return cls(
                source=Shard(**fields["source"]),
                edition=fields["edition"],
                rows=fields["rows"],
                dropped=tuple(Dropped(**dropped) for dropped in fields["dropped"]),
                notes=tuple(Note(**note) for note in fields["notes"]),
                seconds=fields["seconds"],
                span=tuple(fields["span"]) if fields["span"] else None,
                quarantined=fields["set_aside"],
                attempts=fields["attempts"],
                embedded_from=Shard(**before) if (before := fields.get("embedded_from")) else None,
            )
        except (ValueError, KeyError, TypeError) as error:
            raise CollectionError(
                name,
                expected="a ledger entry",
                found=f"{type(error).__name__}: {error}",
                do="delete the file and run chiasm embed again",
            ) from error


def ledger_name(shard_id: str) -> str:
    return f"ledger/{shard_id}.json"


def write_entry(folder: Folder, entry: LedgerEntry, run_id: str) -> None:
    """Write a shard's entry atomically."""
    folder.write_whole(ledger_name(entry.source.id), entry.to_json(), run_id)


def rewrite_entry(folder: Folder, shard_id: str, changes: Mapping[str, Any], run_id: str) -> None:
    """Write a shard's entry again with other fields, None for those to leave out. Fields that this
    version does not know are kept. Atomic."""
    name = ledger_name(shard_id)
    fields = json.loads(folder.read_bytes(name).decode("utf-8", "surrogatepass"))
    left_out = {key for key, value in changes.items() if value is None}
    fields = {key: value for key, value in (fields | changes).items() if key not in left_out}
    folder.write_whole(name, _to_bytes(fields), run_id)


def _to_bytes(fields: Mapping[str, Any]) -> bytes:
    text = json.dumps(fields, ensure_ascii=False, indent=1)
    return text.encode("utf-8", "surrogatepass") + b"\n"


def read_entry(folder: Folder, shard_id: str) -> LedgerEntry | None:
    """The entry of a shard, None where there is none; raises CollectionError for a damaged one."""
    name = ledger_name(shard_id)
    if not folder.exists(name):
        return None
    return LedgerEntry.from_json(folder.read_bytes(name), display_name(folder.url_of(name)))


def entries(folder: Folder) -> Iterator[LedgerEntry]:
    """Every entry of a collection, by shard id."""
    found = folder.map_concurrent(lambda shard_id: read_entry(folder, shard_id), _shard_ids(folder))
    for entry in found:
        if entry is not None:
            yield entry


def own_entries(folder: Folder) -> dict[str, LedgerEntry]:
    """By shard id, every entry but copies under other names."""
    shard_ids = _shard_ids(folder)
    found = folder.map_concurrent(lambda shard_id: read_entry(folder, shard_id), shard_ids)
    return {
        shard_id: entry
        for shard_id, entry in zip(shard_ids, found, strict=True)
        if entry is not None and entry.source.id == shard_id
    }


def _shard_ids(folder: Folder) -> list[str]:
    names = [name for name in folder.list("ledger") if name.endswith(".json")]
    return [name.removeprefix("ledger/").removesuffix(".json") for name in names]

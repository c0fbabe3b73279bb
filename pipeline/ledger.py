"""The ledger: what became of every sample of a shard, counted while it happens, written before the
rows.

In comes what `read_samples` and the decoder yield; out goes one `LedgerEntry` a shard, stored as
`ledger/<shard id>.json`. rows + dropped = samples, always. The entry is written before the Parquet
file is renamed into place, so a Parquet file never stands there without its account; a pair that
disagrees (a kill fell between the two, or the shard changed) counts as not done.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

from pipeline.errors import CollectionError
from pipeline.records import Dropped, Note, Shard
from pipeline.storage import Folder, shown

SCHEMA = 1


class Tally:
    """Counts one shard's samples as they pass. Used by one thread, the one that writes the rows."""

    def __init__(self) -> None:
        self.rows = 0
        self.dropped: list[Dropped] = []
        self.notes: list[Note] = []

    @property
    def samples(self) -> int:
        return self.rows + len(self.dropped)

    def keep(self, rows: int) -> None:
        self.rows += rows

    def drop(self, lost: Dropped) -> None:
        self.dropped.append(lost)

    def note(self, note: Note) -> None:
        self.notes.append(note)


class Stopwatch:
    """Busy seconds by stage, by the clock `now`, summed over all threads; safe in any of them."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = {}
        self._now = now
        self._lock = threading.Lock()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = self._now()
        try:
            yield
        finally:
            self.add(name, self._now() - start)

    def add(self, name: str, seconds: float) -> None:
        with self._lock:
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds


@dataclass(frozen=True)
class LedgerEntry:
    """The account of one shard.

    source: the shard as it was listed; edition: see `pipeline.embed.edition_of`; seconds: busy
    seconds by stage; span: wall clock (opening, commit) in seconds since the epoch; set_aside:
    why the shard could not be embedded, after how many attempts, or None when it was.
    """

    source: Shard
    edition: str
    rows: int
    dropped: tuple[Dropped, ...] = ()
    notes: tuple[Note, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    span: tuple[float, float] | None = None
    set_aside: str | None = None
    attempts: int = 1

    @property
    def samples(self) -> int:
        return self.rows + len(self.dropped)

    def reasons(self) -> dict[str, int]:
        """How many samples were dropped under each reason, most frequent first."""
        return dict(Counter(lost.reason for lost in self.dropped).most_common())

    def to_json(self) -> bytes:
        told = {"schema": SCHEMA, "samples": self.samples, **asdict(self)}
        return (
            json.dumps(told, ensure_ascii=False, indent=1).encode("utf-8", "surrogatepass") + b"\n"
        )

    @classmethod
    def from_json(cls, data: bytes, name: str) -> LedgerEntry:
        try:
            told = json.loads(data)
            return cls(
                source=Shard(**told["source"]),
                edition=told["edition"],
                rows=told["rows"],
                dropped=tuple(Dropped(**lost) for lost in told["dropped"]),
                notes=tuple(Note(**note) for note in told["notes"]),
                seconds=told["seconds"],
                span=tuple(told["span"]) if told["span"] else None,
                set_aside=told["set_aside"],
                attempts=told["attempts"],
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
    """Put the entry in its place, whole or not at all."""
    folder.write_whole(ledger_name(entry.source.id), entry.to_json(), run_id)


def read_entry(folder: Folder, shard_id: str) -> LedgerEntry | None:
    """The entry of a shard, None where there is none; raises CollectionError for a damaged one."""
    name = ledger_name(shard_id)
    if not folder.exists(name):
        return None
    return LedgerEntry.from_json(folder.read_bytes(name), shown(folder.url_of(name)))


def entries(folder: Folder) -> Iterator[LedgerEntry]:
    """Every entry of a collection, by shard id."""
    names = [name for name in folder.list("ledger") if name.endswith(".json")]
    shard_ids = [name.removeprefix("ledger/").removesuffix(".json") for name in names]
    for entry in folder.each(lambda shard_id: read_entry(folder, shard_id), shard_ids):
        if entry is not None:
            yield entry

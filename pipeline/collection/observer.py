"""Who lives: what this process knows of the runs of a collection.

A run of this machine lives while its process does. Of any other run only its record tells: a live
one renews it every HEARTBEAT_SECONDS, so one that has not changed for STALE_SECONDS of our own
monotonic clock is dead. No two clocks are compared. A process that has just begun to look has seen
nothing stand still yet, so every such run may live. The same holds for a record that cannot be
read, or that a newer version wrote. The cost: a run killed on another machine is known to be dead
only after a minute of looking.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from chiasm.pipeline.collection.processes import ProcessId
from chiasm.pipeline.collection.run_record import (
    RunRecord,
    mark_name,
    marked_killed,
    record_name,
    run_of_record,
)
from chiasm.pipeline.errors import CollectionError, StorageError
from chiasm.pipeline.storage import Folder, Stat
from chiasm.pipeline.timing import Clock

HEARTBEAT_SECONDS = 2.0
STALE_SECONDS = 60.0
# Of a record that cannot be read, beside the newest file there: so that a damaged one does not cost
# every command the wait for STALE_SECONDS. Long, since the store's clock may be set.
OLD_SECONDS = 3600.0
# Two writes of a file within one tick of its file system's clock show one time: at most 2 s (FAT).
TICK_OF_FILES = 2.0


class Life(enum.Enum):
    """ENDED: the record says so. ALIVE, DEAD: known. UNKNOWN: perhaps alive; not looked at for long
    enough."""

    ENDED = "ended"
    ALIVE = "alive"
    UNKNOWN = "unknown"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class Seen:
    """One run as it was last seen. record: None where it cannot be read. here: whether it is known
    by its process, not by its heartbeat."""

    id: str
    record: RunRecord | None
    life: Life
    here: bool

    @property
    def may_live(self) -> bool:
        return self.life in (Life.ALIVE, Life.UNKNOWN)

    @property
    def claimed(self) -> tuple[str, ...]:
        return () if self.record is None else self.record.claimed


@dataclass(frozen=True, slots=True)
class _Sighting:
    """A record as it was last read. since: when it was first seen so; moved: whether it was seen
    otherwise before that; read: when it was last read; all by our clock."""

    stat: Stat
    digest: bytes
    record: RunRecord | None
    since: float
    moved: bool
    read: float


class RunObserver:
    """Looks at the runs of a collection, that of `own_id` excepted. A look is one listing, and one
    read for every run that may have changed since.

    activity: changes whenever a look finds a run that may live, or one that has ended since the
    look before: while it stays, no other run has written anything."""

    def __init__(
        self,
        folder: Folder,
        clock: Clock,
        alive: Callable[[ProcessId], bool | None],
        own_id: str = "",
    ) -> None:
        self._folder, self._clock, self._alive, self._own_id = folder, clock, alive, own_id
        self._sightings: dict[str, _Sighting] = {}
        # A run that has ended or is dead is read again only if its file changes all the same.
        self._final: dict[str, Stat] = {}
        self._unmarked: dict[str, tuple[Seen, bytes]] = {}
        self.activity = 0

    def observe(self) -> list[Seen]:
        """The other runs that may live, and those found to have ended or died since the last look;
        oldest first."""
        began = self._clock.monotonic()
        stats_of_all = self._folder.list_stats("runs")
        stats = {
            name: stat
            for name, stat in sorted(stats_of_all.items())
            if self._final.get(name) != stat and run_of_record(name) not in (None, self._own_id)
        }
        self._read_changed(stats, began)
        times = [stat.modified for stat in stats_of_all.values() if stat.modified is not None]
        newest = max(times, default=0.0)
        seen = [
            self._assess(name, began, marked=mark_name(run_id) in stats_of_all, newest=newest)
            for name in stats
            if name in self._sightings and (run_id := run_of_record(name))
        ]
        self.activity += bool(seen)
        return seen

    def dead_here(self) -> bool:
        """Whether a run of this machine was found dead that is not marked so yet."""
        return any(seen.here for seen, _ in self._unmarked.values())

    def mark_dead(self, run_id: str) -> set[str]:
        """Mark the runs that were found dead as killed, for themselves and so that no later run has
        to find out again; returns those that are not marked, since their records have changed since
        or cannot be read: they may live after all. run_id: of the writer."""

        def mark(dead: tuple[Seen, bytes]) -> str:
            name = record_name(dead[0].id)
            content = read_content(self._folder, name)
            if content is not None and (not content or _digest(content) != dead[1]):
                return dead[0].id
            if content:
                self._folder.write_whole(mark_name(dead[0].id), b"", run_id)
                if dead[0].record is not None:
                    self._folder.write_whole(name, marked_killed(content), run_id)
            return ""

        unmarked, self._unmarked = list(self._unmarked.values()), {}
        return {name for name in self._folder.map_concurrent(mark, unmarked) if name}

    def _read_changed(self, stats: dict[str, Stat], began: float) -> None:
        changed = [name for name, stat in stats.items() if self._may_have_changed(name, stat)]
        contents = self._folder.map_concurrent(
            lambda name: read_content(self._folder, name), changed
        )
        for name, content in zip(changed, contents, strict=True):
            known = self._sightings.pop(name, None)
            if content is None:
                continue
            digest, now = _digest(content), self._clock.monotonic()
            same = known is not None and (known.stat, known.digest) == (stats[name], digest)
            self._sightings[name] = _Sighting(
                stats[name],
                digest,
                known.record if same else _parse(content, name),
                known.since if same else now,
                known is not None and (known.moved or not same),
                began,
            )

    def _may_have_changed(self, name: str, stat: Stat) -> bool:
        known = self._sightings.get(name)
        if known is None or known.stat != stat or known.record is None:
            return True
        return known.read - known.since < TICK_OF_FILES

    def _assess(self, name: str, began: float, *, marked: bool, newest: float) -> Seen:
        """marked: whether a run has marked it as killed. newest: when any file of `runs/` was last
        written, by the store's clock."""
        sighting = self._sightings[name]
        record, written = sighting.record, sighting.stat.modified
        running = not marked if record is None else not record.is_ended
        here = None if record is None or not running else self._alive(record.process)
        old = record is None and written is not None and newest - written >= OLD_SECONDS
        if not running:
            life = Life.ENDED
        elif here is not None:
            life = Life.ALIVE if here else Life.DEAD
        elif old or began - sighting.since >= STALE_SECONDS:
            life = Life.DEAD
        else:
            life = Life.ALIVE if sighting.moved else Life.UNKNOWN
        seen = Seen(run_of_record(name) or "", record, life, here is not None)
        if not seen.may_live:
            self._final[name] = sighting.stat
            del self._sightings[name]
            if life is Life.DEAD:
                self._unmarked[name] = (seen, sighting.digest)
        return seen


def read_content(folder: Folder, name: str) -> bytes | None:
    """What is in a record: b"" where it cannot be read, None where it is gone."""
    try:
        return folder.read_bytes(name)
    except StorageError:
        with contextlib.suppress(StorageError):
            if folder.stat(name) is None:
                return None
        return b""


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _parse(content: bytes, name: str) -> RunRecord | None:
    try:
        return RunRecord.from_json(content, name)
    except CollectionError:
        return None  # damaged, or of a newer version: nothing is known of it but its age

"""Runs: which commands write to a collection now, and what dead ones left behind.

A run is one command that writes. It keeps `runs/<run id>.json` with its settings, a heartbeat and
the shards that it has claimed, and removes the temporaries of dead runs; `observer.py` says which
are dead. Two live runs share the work by skipping shards that the other has claimed.

A run that others may take for dead must not go on as if it lived: where its record could not be
renewed for LAPSE_SECONDS, the next write looks first whether another run has marked it killed. If
so, it ends with an error; if not, its `lapses` grow, and whoever rests on its claims claims anew.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from chiasm.pipeline.collection.identity import FOLDERS
from chiasm.pipeline.collection.ledger import entry_ids
from chiasm.pipeline.collection.observer import (
    HEARTBEAT_SECONDS,
    STALE_SECONDS,
    Life,
    RunObserver,
    Seen,
)
from chiasm.pipeline.collection.processes import THIS_MACHINE, Machine
from chiasm.pipeline.collection.run_record import (
    RELOCATE,
    RUNNING,
    RunRecord,
    mark_name,
    record_name,
)
from chiasm.pipeline.collection.uploads import is_dead_upload, owner_of_upload, unclaimed_shard
from chiasm.pipeline.errors import CollectionError, StorageError
from chiasm.pipeline.storage import (
    Folder,
    display_name,
    is_temporary,
    run_of_temporary,
    target_of_temporary,
)
from chiasm.pipeline.timing import SYSTEM_CLOCK, Clock

LOG = logging.getLogger(__name__)
ORPHAN_SECONDS = 1.5  # workers check for their driver twice a second and have exited by then
# Half of what others wait: the rest is for a write that is under way, and for clocks' rates.
LAPSE_SECONDS = STALE_SECONDS / 2


class Run:
    """This process's own run, used in a `with`: registers itself, writes heartbeats, ends with a
    state.

    Only this object writes the run's file, but for the mark `killed`; `claim` and `finish` may be
    called from any thread. lapses: how often others may have taken it for dead.
    """

    def __init__(
        self,
        folder: Folder,
        command: str,
        settings: dict[str, Any],
        *,
        run_id: str = "",
        clock: Clock = SYSTEM_CLOCK,
        machine: Machine = THIS_MACHINE,
        heartbeats: bool = True,
        make_room: Callable[[Run], object] = lambda run: None,
    ) -> None:
        """run_id: made from time and chance where it is empty. heartbeats: by a thread; without it
        the caller calls `beat` every HEARTBEAT_SECONDS. make_room: removes what dead runs have left
        beside temporaries; called where the disk is too full for this run's record."""
        now, process = clock.time(), machine.this_process()
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now))
        self.folder, self.clock, self._make_room = folder, clock, make_room
        self.record = RunRecord(
            id=run_id or f"{stamp}-{secrets.token_hex(4)}",
            command=command,
            host=machine.host(),
            pid=process.pid,
            boot_id=process.boot_id,
            pid_namespace=process.pid_namespace,
            start_ticks=process.start_ticks,
            time_namespace=process.time_namespace,
            started=now,
            heartbeat=now,
            settings=settings,
        )
        self.lapses = 0
        self._withdrawn = False
        self._renewed = clock.monotonic()
        self._marked: CollectionError | None = None
        self._observer = RunObserver(folder, clock, machine.alive, self.id)
        self._lock = threading.RLock()  # of the record; a long look must not hold up heartbeats
        self._looking = threading.Lock()
        self._stop = threading.Event()
        self._heartbeat: threading.Thread | None = None
        if heartbeats:
            self._heartbeat = threading.Thread(
                target=self._send_heartbeats, name="heartbeat", daemon=True
            )

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def activity(self) -> int:
        """Changes with every look at the other runs that finds one that may have written."""
        return self._observer.activity

    def __enter__(self) -> Run:
        try:
            self._write()
        except StorageError:
            if self.folder.local is None:
                raise
            # Of a full disk, perhaps: a run without room for its record would never remove what
            # dead runs have left.
            self.remove_temporaries(FOLDERS)
            self._make_room(self)
            self._write()
        if self._heartbeat is not None:
            self._heartbeat.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        self._stop.set()
        if self._heartbeat is not None:
            self._heartbeat.join()
        if self.record.state == RUNNING:
            stopped = kind is not None and not issubclass(kind, Exception)
            self.record = replace(self.record, state="stopped" if stopped else "failed")
        # A full disk must not hide the error that ends the run: a record in state `running` whose
        # process is gone reads as killed.
        with contextlib.suppress(StorageError) if kind else contextlib.nullcontext():
            if self._withdrawn:
                self.folder.remove(record_name(self.id))
                self.folder.remove_folder("runs", lambda name: False)  # an empty one
            else:
                self._write()

    def claim(self, shard_ids: Iterable[str]) -> None:
        """Set the shards that this run works on, in place of those claimed before; written to its
        file at once. Raises as `confirm`."""
        with self._lock:
            self.record = replace(self.record, claimed=tuple(sorted(shard_ids)))
            self._renew()

    def release(self, shard_ids: Iterable[str]) -> None:
        """Set the shards that this run works on, all of them claimed before. Written with the next
        claim or heartbeat: until then others only leave alone what they need not."""
        with self._lock:
            self.record = replace(self.record, claimed=tuple(shard_ids))

    def finish(self, state: str, summary: dict[str, Any]) -> None:
        """Set the final state, `done` or `failed`; written when the `with` is left."""
        with self._lock:
            self.record = replace(self.record, state=state, summary=summary, claimed=())

    def withdraw(self) -> None:
        """Leave no record behind: nothing was written, and nothing could be."""
        self._withdrawn = True

    def beat(self) -> None:
        """Renew the record. Raises StorageError where it cannot be written, CollectionError where
        another run has found this one dead."""
        with self._lock:
            self._check_mark()
            self._renew()

    def confirm(self) -> None:
        """Return if no other run can have taken this one for dead, else renew the record first;
        raises as `beat`. To be called before anything that rests on being alive."""
        with self._lock:
            if self._marked is not None:
                raise self._marked
            if self._lapsed():
                self.beat()

    def observe(self) -> list[Seen]:
        """The other runs that may be alive, and those found ended or dead since the last look."""
        with self._looking:
            return self._observer.observe()

    def others(self) -> list[Seen]:
        """The other runs of this collection that may be alive."""
        return [seen for seen in self.observe() if seen.may_live]

    def wait_for_verdicts(self, run_ids: Iterable[str]) -> set[str]:
        """Wait until every one of these runs is known to live or to be dead; returns those that
        live. Takes up to STALE_SECONDS where a run of another machine was killed."""
        wanted, waiting = set(run_ids), False
        while True:
            others = [seen for seen in self.others() if seen.id in wanted]
            unknown = [seen for seen in others if seen.life is not Life.ALIVE]
            if not unknown:
                return {seen.id for seen in others}
            if not waiting:
                names = ", ".join(
                    f"{seen.id} of {seen.record.host if seen.record else 'an unknown machine'}"
                    for seen in unknown
                )
                LOG.warning("waiting up to %.0f s to see which live: %s", STALE_SECONDS, names)
                waiting = True
            self.clock.sleep(HEARTBEAT_SECONDS)

    def sweep(
        self, folders: Iterable[str], *, own: bool = False, unclaimed: Iterable[str] = ()
    ) -> list[str]:
        """Remove the temporaries of dead runs in `folders`, with `own` also this run's (whose
        workers have exited by then, some of them killed), and in object stores abort their uploads,
        see there; returns the names removed. The dead runs are marked as killed.

        Workers outlive a killed driver by up to half a second and may still create a file: where a
        run of this machine has died that nobody has swept yet, they get the time to exit first."""
        self.observe()
        if self._observer.dead_here():
            self.clock.sleep(ORPHAN_SECONDS)
        removed = self.remove_temporaries(folders, own=own)
        removed += self.abort_uploads(own=own, unclaimed=unclaimed)
        self.mark_dead()
        return removed

    def mark_dead(self) -> set[str]:
        """Mark the runs that were found dead as killed; returns those that may live after all."""
        return self._observer.mark_dead(self.id)

    def remove_temporaries(self, folders: Iterable[str], *, own: bool = False) -> list[str]:
        """Remove the temporaries in `folders` whose runs are dead, with `own` also this run's;
        returns their names."""
        if self.folder.local is None:
            return []  # a store has none, and its listings are long
        # Files are listed before live runs: a run that starts in between has no file in the list.
        names = [name for folder in folders for name in self.folder.list(folder)]
        live = {run.id for run in self.others()} | (set() if own else {self.id})
        removed: list[str] = []
        for name in names:
            if not is_temporary(name) or run_of_temporary(name) in live or self._may_begin(name):
                continue
            try:
                self.folder.remove(name)
                removed.append(name)
            except StorageError as error:  # behind a link, say: it keeps nobody from the rest
                LOG.warning("not removed: %s", error)
        return removed

    def _may_begin(self, temporary: str) -> bool:
        """Whether this may be the first record of a run that begins just now: no record says yet
        that it lives. Its age is the time from its last change to that of our own record, both by
        the file system's clock."""
        record = record_name(run_of_temporary(temporary))
        if target_of_temporary(temporary) != record or self.folder.exists(record):
            return False
        begun, own = self.folder.stat(temporary), self.folder.stat(record_name(self.id))
        if begun is None or own is None or begun.modified is None or own.modified is None:
            return begun is not None
        return abs(own.modified - begun.modified) < STALE_SECONDS

    def abort_uploads(self, *, own: bool = False, unclaimed: Iterable[str] = ()) -> list[str]:
        """Abort the multipart uploads that dead runs left, as `uploads.py` tells them from others;
        returns their URLs. unclaimed: shards whose copies, scores or answers this run writes here
        without a claim. Where a run that may live has not said what it writes, an upload may be
        its."""
        prefix, shards = f"{self.folder.url.rstrip('/')}/", frozenset(unclaimed)

        @functools.cache  # read once there is an upload, and after these were listed
        def ids() -> tuple[set[str], set[str]] | None:
            live = self.others()
            if any(seen.record is None or seen.record.command == RELOCATE for seen in live):
                return None
            known = {part for record in runs(self.folder) for part in (record.id, *record.claimed)}
            living = {part for seen in live for part in (seen.id, *seen.claimed)}
            own_ids = set[str]() if own else {self.id, *self.record.claimed}
            return known | {*entry_ids(self.folder)}, living | own_ids

        def is_dead(url: str) -> bool:
            name = url.removeprefix(prefix)
            if unclaimed_shard(name) in shards:
                return not self.others()
            if owner_of_upload(name) is None:
                return False
            found = ids()
            return found is not None and is_dead_upload(name, *found)

        return list(self.folder.abort_uploads(is_dead))

    def _write(self) -> None:
        with self._lock:
            began = self.clock.monotonic()
            self.folder.write_whole(record_name(self.id), self.record.to_json(), self.id)
            self._renewed = began

    def _renew(self) -> None:
        """Write the record, with a look at it first where others may have taken us for dead."""
        lapsed = self._lapsed()
        if lapsed or self._marked is not None:
            self._check_mark()
        self.record = replace(self.record, heartbeat=self.clock.time(), beats=self.record.beats + 1)
        self._write()
        self.lapses += lapsed

    def _lapsed(self) -> bool:
        return self.clock.monotonic() - self._renewed >= LAPSE_SECONDS

    def _check_mark(self) -> None:
        """CollectionError where another run has marked this one as killed."""
        if self._marked is None:
            if not self.folder.exists(mark_name(self.id)):
                return
            self._marked = CollectionError(
                f"run {self.id} in {display_name(self.folder.url)}",
                expected=f"its record renewed at least every {STALE_SECONDS:.0f} s",
                found="none for longer, and another run that has taken over its work",
                do="run the same command again",
            )
        raise self._marked

    def _send_heartbeats(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                self.beat()
            except CollectionError:
                return  # raised again by the next claim
            except StorageError:
                continue  # one missed heartbeat is no failure: a run counts as dead after many


def runs(folder: Folder) -> Iterator[RunRecord]:
    """Every run of a collection whose record can be read, oldest first."""
    for seen in RunObserver(folder, SYSTEM_CLOCK, THIS_MACHINE.alive).observe():
        if seen.record is not None:
            yield seen.record

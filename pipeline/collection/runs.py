"""Runs: who is at work in a collection, and what dead runs left behind.

A run is one command that writes. It keeps `runs/<run id>.json` with its settings and a heartbeat,
says there which shards it holds, and sweeps the temporaries of runs that are dead: on the same
machine, runs whose process is gone; from elsewhere, runs whose heartbeat is older than a minute.
Two live runs share the work by leaving alone what the other holds. The cost: a run killed on
another machine is noticed only after that minute.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import psutil

from chiasm.pipeline.errors import StorageError
from chiasm.pipeline.storage import Folder, is_temporary, run_of_temporary

HEARTBEAT_SECONDS = 2.0
STALE_SECONDS = 60.0
ORPHAN_SECONDS = 1.5  # workers look for their driver twice a second; after this they are gone


@dataclass(frozen=True)
class RunRecord:
    """What `runs/<run id>.json` holds. Times are seconds since the epoch."""

    id: str
    command: str
    host: str
    pid: int
    process_started: float
    started: float
    heartbeat: float
    state: str = "running"  # running, done, failed, stopped
    holds: tuple[str, ...] = ()  # shard ids in flight
    settings: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)

    def alive(self, now: float | None = None) -> bool:
        """Whether somebody may still write in this run's name."""
        if self.state != "running":
            return False
        if self.host == this_machine():
            return process_alive(self.pid, self.process_started)
        return (now or time.time()) - self.heartbeat < STALE_SECONDS

    def died_after(self, moment: float) -> bool:
        """Whether this run was killed, and later than `moment`."""
        return self.state == "running" and self.heartbeat > moment and not self.alive()


class Run:
    """This process's own run: registers itself, beats, ends with a state. Used in a `with`.

    Only this object writes the run's file; `hold` and `finish` may be called from any thread.
    """

    def __init__(self, folder: Folder, command: str, settings: dict[str, Any]) -> None:
        now = time.time()
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now))
        self.folder = folder
        self.record = RunRecord(
            id=f"{stamp}-{secrets.token_hex(4)}",
            command=command,
            host=this_machine(),
            pid=os.getpid(),
            process_started=psutil.Process().create_time(),
            started=now,
            heartbeat=now,
            settings=settings,
        )
        self._lock = threading.Lock()
        self._ended: set[str] = set()  # files of runs that have ended: they change no more
        self._over = threading.Event()
        self._beat = threading.Thread(target=self._keep_beating, name="heartbeat", daemon=True)

    @property
    def id(self) -> str:
        return self.record.id

    def __enter__(self) -> Run:
        try:
            self._write()
        except StorageError:
            # Until this file is there nobody knows the run: a sweep may take its temporary away.
            self._write()
        self._beat.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        self._over.set()
        self._beat.join()
        if self.record.state == "running":
            stopped = kind is not None and not issubclass(kind, Exception)
            self.record = replace(self.record, state="stopped" if stopped else "failed")
        # A full disk must not hide the error that ends the run: a record that says `running` with
        # no process behind it reads as killed.
        with contextlib.suppress(StorageError) if kind else contextlib.nullcontext():
            self._write()

    def hold(self, shard_ids: Iterable[str]) -> None:
        """Say which shards are in flight; told to others with the next heartbeat at the latest."""
        holds = tuple(sorted(shard_ids))
        if holds != self.record.holds:
            with self._lock:
                self.record = replace(self.record, holds=holds)
            self._write()

    def finish(self, state: str, summary: dict[str, Any]) -> None:
        with self._lock:
            self.record = replace(self.record, state=state, summary=summary, holds=())

    def others(self) -> list[RunRecord]:
        """The other runs of this collection that are alive."""
        lying = [name for name in _names(self.folder) if name not in self._ended]
        found = [run for run in _read_all(self.folder, lying) if run.id != self.id]
        self._ended |= {_name(run.id) for run in found if run.state != "running"}
        return [run for run in found if run.alive()]

    def sweep(self, folders: Iterable[str], *, own: bool = False) -> list[str]:
        """Remove the temporaries that dead runs left in `folders`, with `own` also this run's
        (whose workers are gone by then, some of them killed), and on object stores the uploads they
        began; returns their names.

        Workers outlive a killed driver by up to half a second and may still make a file: after a
        run that died just now they are given the time to be gone first."""
        now = time.time()
        if any(run.died_after(now - 10 * ORPHAN_SECONDS) for run in runs(self.folder)):
            time.sleep(ORPHAN_SECONDS)
        # First what lies there, then who is alive: a run that begins in between has nothing listed.
        lying = [name for where in folders for name in self.folder.list(where)]
        writing = {run.id for run in self.others()} | (set() if own else {self.id})
        swept = [
            name for name in lying if is_temporary(name) and run_of_temporary(name) not in writing
        ]
        for name in swept:
            self.folder.remove(name)
        return swept + self.abort_uploads(own=own)

    def abort_uploads(self, *, own: bool = False) -> list[str]:
        """End uploads in parts that dead runs left: nobody sees them, but they are paid for. Behind
        one is whoever holds its shard or, in the index, whose id stands in its name."""

        @functools.cache
        def marks() -> set[str]:
            living = self.others() + ([] if own else [self.record])
            return {mark for run in living for mark in (run.id, *run.holds)}

        dead = self.folder.abort_uploads(lambda url: not any(mark in url for mark in marks()))
        return list(dead)

    def _write(self) -> None:
        with self._lock:
            told = json.dumps(asdict(self.record), ensure_ascii=False, indent=1)
            self.folder.write_whole(_name(self.id), told.encode() + b"\n", self.id)

    def _keep_beating(self) -> None:
        while not self._over.wait(HEARTBEAT_SECONDS):
            with self._lock:
                self.record = replace(self.record, heartbeat=time.time())
            # A missed beat is no failure: others call a run stale only after many.
            with contextlib.suppress(StorageError):
                self._write()


def runs(folder: Folder) -> Iterator[RunRecord]:
    """Every run of a collection, oldest first. A record that cannot be read is passed over: it is
    swapped whole, so only one that a newer version wrote can be such."""
    return _read_all(folder, _names(folder))


def _names(folder: Folder) -> list[str]:
    return [
        name for name in folder.list("runs") if name.endswith(".json") and not is_temporary(name)
    ]


def _read_all(folder: Folder, names: Iterable[str]) -> Iterator[RunRecord]:
    for record in folder.map_concurrent(lambda name: _read(folder, name), names):
        if record is not None:
            yield record


def _read(folder: Folder, name: str) -> RunRecord | None:
    try:
        told: dict[str, Any] = json.loads(folder.read_bytes(name))
        return RunRecord(holds=tuple(told.pop("holds")), **told)
    except StorageError:
        # A store that does not answer shows no dead run: what a living one uploads stays.
        if folder.local is None and folder.stat(name) is not None:
            raise
        return None
    except (ValueError, TypeError, KeyError):
        return None


def this_machine() -> str:
    """A name under which a pid means one process: containers may share a host's name alone."""
    try:
        return f"{socket.gethostname()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no such thing but on Linux
        return socket.gethostname()


def process_alive(pid: int, started: float) -> bool:
    """Whether the process that began at `started` still runs: a pid alone may have a new owner."""
    try:
        process = psutil.Process(pid)
        # Two readings of the start may differ by a clock tick.
        return abs(process.create_time() - started) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _name(run_id: str) -> str:
    return f"runs/{run_id}.json"

"""Runs: which commands write to a collection now, and what dead ones left behind.

A run is one command that writes. It keeps `runs/<run id>.json` with its settings, a heartbeat and
the shards that it has claimed, and removes the temporaries of dead runs: on the same machine, runs
whose process is gone; on another one, runs whose heartbeat is older than a minute. Two live runs
share the work by skipping shards that the other has claimed. The cost: a run killed on another
machine is noticed only after that minute.
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

from chiasm.pipeline.collection.uploads import is_dead_upload
from chiasm.pipeline.errors import StorageError
from chiasm.pipeline.storage import Folder, is_temporary, run_of_temporary

HEARTBEAT_SECONDS = 2.0
STALE_SECONDS = 60.0
ORPHAN_SECONDS = 1.5  # workers check for their driver twice a second and have exited by then


@dataclass(frozen=True)
class RunRecord:
    """The content of `runs/<run id>.json`. Times are seconds since the epoch."""

    id: str
    command: str
    host: str
    pid: int
    process_started: float
    started: float
    heartbeat: float
    state: str = "running"  # running, done, failed, stopped
    claimed: tuple[str, ...] = ()  # shard ids in flight; `holds` in the file
    settings: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)

    def alive(self, now: float | None = None) -> bool:
        """Whether this run may still write: its process runs, or its heartbeat is recent."""
        if self.state != "running":
            return False
        if self.host == this_machine():
            return process_alive(self.pid, self.process_started)
        return (now or time.time()) - self.heartbeat < STALE_SECONDS

    def died_after(self, moment: float) -> bool:
        """Whether this run was killed, and later than `moment`."""
        return self.state == "running" and self.heartbeat > moment and not self.alive()

    def to_json(self) -> bytes:
        """The file's content."""
        fields = {("holds" if key == "claimed" else key): v for key, v in asdict(self).items()}
        return json.dumps(fields, ensure_ascii=False, indent=1).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> RunRecord:
        """Raises ValueError, TypeError or KeyError where `data` is no record of this version."""
        fields: dict[str, Any] = json.loads(data)
        return cls(claimed=tuple(fields.pop("holds")), **fields)


class Run:
    """This process's own run, used in a `with`: registers itself, writes heartbeats, ends with a
    state.

    Only this object writes the run's file; `claim` and `finish` may be called from any thread.
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
        self._ended: set[str] = set()  # files of runs that have ended, which change no more
        self._stop = threading.Event()
        self._heartbeat = threading.Thread(
            target=self._send_heartbeats, name="heartbeat", daemon=True
        )

    @property
    def id(self) -> str:
        return self.record.id

    def __enter__(self) -> Run:
        try:
            self._write()
        except StorageError:
            # Until this file exists the run counts as dead, and a sweep may remove its temporary.
            self._write()
        self._heartbeat.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        self._stop.set()
        self._heartbeat.join()
        if self.record.state == "running":
            stopped = kind is not None and not issubclass(kind, Exception)
            self.record = replace(self.record, state="stopped" if stopped else "failed")
        # A full disk must not hide the error that ends the run: a record in state `running` whose
        # process is gone reads as killed.
        with contextlib.suppress(StorageError) if kind else contextlib.nullcontext():
            self._write()

    def claim(self, shard_ids: Iterable[str]) -> None:
        """Set the shards that this run works on, in place of those claimed before; written to its
        file at once."""
        claimed = tuple(sorted(shard_ids))
        if claimed != self.record.claimed:
            with self._lock:
                self.record = replace(self.record, claimed=claimed)
            self._write()

    def finish(self, state: str, summary: dict[str, Any]) -> None:
        """Set the final state, `done` or `failed`; written when the `with` is left."""
        with self._lock:
            self.record = replace(self.record, state=state, summary=summary, claimed=())

    def others(self) -> list[RunRecord]:
        """The other runs of this collection that are alive."""
        names = [name for name in _names(self.folder) if name not in self._ended]
        records = [run for run in _read_all(self.folder, names) if run.id != self.id]
        self._ended |= {_name(run.id) for run in records if run.state != "running"}
        return [run for run in records if run.alive()]

    def sweep(self, folders: Iterable[str], *, own: bool = False) -> list[str]:
        """Remove the temporaries of dead runs in `folders`, with `own` also this run's (whose
        workers have exited by then, some of them killed), and in object stores abort their uploads;
        returns the names removed.

        Workers outlive a killed driver by up to half a second and may still create a file: where a
        run died just now, they get the time to exit first."""
        now = time.time()
        if any(run.died_after(now - 10 * ORPHAN_SECONDS) for run in runs(self.folder)):
            time.sleep(ORPHAN_SECONDS)
        return self.remove_temporaries(folders, own=own) + self.abort_uploads(own=own)

    def remove_temporaries(self, folders: Iterable[str], *, own: bool = False) -> list[str]:
        """Remove the temporaries in `folders` whose runs are dead, with `own` also this run's;
        returns their names."""
        # Files are listed before live runs: a run that starts in between has no file in the list.
        names = [name for folder in folders for name in self.folder.list(folder)]
        live = {run.id for run in self.others()} | (set() if own else {self.id})
        stale = [
            name for name in names if is_temporary(name) and run_of_temporary(name) not in live
        ]
        for name in stale:
            self.folder.remove(name)
        return stale

    def abort_uploads(self, *, own: bool = False) -> list[str]:
        """Abort the multipart uploads that dead runs left, as `uploads.py` tells them from others;
        returns their URLs."""
        prefix = f"{self.folder.url.rstrip('/')}/"

        @functools.cache  # read once there is an upload, and after these were listed
        def live_ids() -> tuple[set[str], set[str]]:
            others = {part for run in self.others() for part in (run.id, *run.claimed)}
            return others, set() if own else {self.id, *self.record.claimed}

        def is_dead(url: str) -> bool:
            return is_dead_upload(url.removeprefix(prefix), *live_ids())

        return list(self.folder.abort_uploads(is_dead))

    def _write(self) -> None:
        with self._lock:
            self.folder.write_whole(_name(self.id), self.record.to_json(), self.id)

    def _send_heartbeats(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            with self._lock:
                self.record = replace(self.record, heartbeat=time.time())
            # A missed heartbeat is no failure: a run counts as stale only after many.
            with contextlib.suppress(StorageError):
                self._write()


def runs(folder: Folder) -> Iterator[RunRecord]:
    """Every run of a collection, oldest first. A record that cannot be read is skipped: records are
    written atomically, so only a newer version can have written it."""
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
        return RunRecord.from_json(folder.read_bytes(name))
    except StorageError:
        # A store that does not answer proves no run dead: uploads of a live one must stay.
        if folder.local is None and folder.stat(name) is not None:
            raise
        return None
    except (ValueError, TypeError, KeyError):
        return None


def this_machine() -> str:
    """Host name and pid namespace, within which a pid is one process: containers may share a host
    name."""
    try:
        return f"{socket.gethostname()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:  # only Linux has pid namespaces
        return socket.gethostname()


def process_alive(pid: int, started: float) -> bool:
    """Whether the process that started at `started` (seconds since the epoch) still runs: its pid
    alone may belong to a new process."""
    try:
        process = psutil.Process(pid)
        # Two readings of the start time may differ by a clock tick.
        return abs(process.create_time() - started) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _name(run_id: str) -> str:
    return f"runs/{run_id}.json"

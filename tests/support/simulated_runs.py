"""What runs in a simulated world: embedding runs, builds of the index, searchers, by product code.

Runs, work lists, ledgers, publishing, sweeping and opening are the product's own. Simulated are the
store, the clocks, the machines, and the two things that only take time: encoding a shard (its
Parquet file is prepared once) and filling a segment (its files are a few bytes).
"""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fake_encoder import FakeEncoder
from greenlet import getcurrent, greenlet
from simulated_store import SerialFiles, SimulatedStore
from simulated_world import Process, SimulatedClock, World
from tiny_collection import add_shard

from chiasm.index.build.build import _sweeping
from chiasm.index.build.covered import CoveredShards
from chiasm.index.plan import IndexSettings
from chiasm.index.segments import (
    FileSum,
    IndexedShard,
    Manifest,
    SegmentEntry,
    live_number,
    open_current,
    publish,
    segment_file,
    sweep,
)
from chiasm.index.segments.segment import SegmentRecord
from chiasm.pipeline.collection import (
    FOLDERS,
    Collection,
    Identity,
    LedgerEntry,
    Run,
    create_or_check,
    parquet_name,
    read_entry,
    write_entry,
)
from chiasm.pipeline.collection.observer import HEARTBEAT_SECONDS
from chiasm.pipeline.collection.processes import Machine
from chiasm.pipeline.editions import EmbedSettings, edition_of
from chiasm.pipeline.errors import CollectionError, StorageError
from chiasm.pipeline.records import Shard
from chiasm.pipeline.storage import Folder
from chiasm.pipeline.worklist import RECHECK_SECONDS, WorkList

ROOT = "s3://bucket/c"
SETTINGS = EmbedSettings()
IDENTITY = Identity.of(FakeEncoder())
NAMESPACE = "pid:[4026531836]"  # of the first namespace of every Linux


@dataclass
class SimulatedMachine(Machine):
    """A machine: what /proc would show of its processes. Several may have one name."""

    world: World
    boot: str
    name: str
    clock: SimulatedClock
    processes: dict[int, Process] = field(default_factory=dict)

    def read(self, name: str) -> str:
        if name == "sys/kernel/random/boot_id":
            return self.boot + "\n"
        pid = self.pid() if name == "self/stat" else int(name.partition("/")[0])
        process = self.processes.get(pid)
        if process is None or not process.alive:
            raise FileNotFoundError(name)
        return f"{pid} (a (b) c) S " + " ".join(["0"] * 18) + f" {process.start_ticks} 0\n"

    def link(self, name: str) -> str:
        return NAMESPACE

    def pid(self) -> int:
        current = self.world.current
        return next(pid for pid, process in self.processes.items() if process is current)

    def probe(self, pid: int) -> None:
        raise ProcessLookupError

    def host(self) -> str:
        return self.name

    def start(self, name: str, command: Callable[[], Any]) -> Process:
        """A new process, under the first pid that is free: that of one that has ended, perhaps."""
        pid = next(
            pid
            for pid in itertools.count(7)
            if pid not in self.processes or not self.processes[pid].alive
        )
        process = self.world.start(name, command)
        process.start_ticks = int(self.world.now * 100) + 1
        self.processes[pid] = process
        return process


class GreenletLock:
    """What `threading.RLock` is between threads, between greenlets of one thread."""

    def __init__(self, world: World) -> None:
        self._world, self._depth = world, 0
        self._owner: greenlet | None = None
        self._waiting: deque[greenlet] = deque()

    def __enter__(self) -> None:
        while self._owner not in (None, getcurrent()):
            self._waiting.append(getcurrent())
            self._world.wait()
        self._owner = getcurrent()
        self._depth += 1

    def __exit__(self, *raised: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._owner = None
            if self._waiting:
                self._world.wake(self._waiting.popleft())


@functools.cache
def prepared(shard: Shard) -> tuple[LedgerEntry, bytes]:
    """The ledger entry and the Parquet file of a shard."""
    store = SimulatedStore()
    folder = Folder(ROOT, SerialFiles("s3", lambda: store))
    edition = edition_of(shard, IDENTITY.fingerprint, SETTINGS)
    add_shard(folder, shard.id.rpartition("-")[0], 1, edition=edition, shard=shard)
    entry = read_entry(folder, shard.id)
    assert entry is not None
    return entry, store.objects[f"bucket/c/{parquet_name(shard.id)}"].data


def shard_number(number: int, version: str = "1") -> Shard:
    return Shard(f"file:///nowhere/s{number}.tar", f"s{number}-0123456789", 4096, version)


@dataclass
class Embedding:
    """`chiasm embed` in a simulated world. working_on: the shard that it embeds just now."""

    machine: SimulatedMachine
    shards: Sequence[Shard]
    folder: Folder
    run: Run | None = None
    working_on: str = ""
    process: Process | None = None

    def __call__(self) -> None:
        world, clock = self.machine.world, self.machine.clock
        self.process = world.current
        self.run = new_run(self.machine, self.folder, "embed")
        with self.run as run:
            heartbeats = start_heartbeats(self.machine, run)
            try:
                run.sweep(FOLDERS)
                work = WorkList(self.shards, run, SETTINGS)
                work.skip_finished(create_or_check(self.folder, IDENTITY, run.id))
                while not work.over:
                    task = work.take()
                    if task is None:
                        clock.sleep(RECHECK_SECONDS)
                        continue
                    self.working_on = task.shard.id
                    clock.sleep(world.rng.choice((0.1, 1.0, 5.0)))
                    entry, parquet = prepared(task.shard)
                    write_entry(self.folder, entry, run.id)
                    self.folder.write_whole(parquet_name(task.shard.id), parquet, run.id)
                    self.working_on = ""
                    work.finish(task, entry)
                run.sweep(FOLDERS, own=True)
                run.finish("done", {})
            finally:
                self.working_on = ""
                heartbeats.over = True


def new_run(machine: SimulatedMachine, folder: Folder, command: str) -> Run:
    world = machine.world
    run_id = f"20270115T{int(world.now) % 1000000:06d}-{world.rng.getrandbits(32):08x}"
    run = Run(
        folder, command, {}, run_id=run_id, clock=machine.clock, machine=machine, heartbeats=False
    )
    run._lock = GreenletLock(world)  # pyrefly: ignore  # one thread runs them all
    return run


@dataclass
class Heartbeats:
    over: bool = False


def start_heartbeats(machine: SimulatedMachine, run: Run) -> Heartbeats:
    """The thread that renews a run's record."""
    state = Heartbeats()

    def beat() -> None:
        while True:
            machine.clock.sleep(HEARTBEAT_SECONDS)
            if state.over:
                return
            try:
                run.beat()
            except CollectionError:
                return
            except StorageError:
                continue

    machine.world.start("heartbeats", beat, of=machine.world.current)
    return state


@dataclass
class Building:
    """`chiasm index build` in a simulated world: one segment of everything that is embedded."""

    machine: SimulatedMachine
    folder: Folder
    settings: IndexSettings = field(default_factory=IndexSettings)
    run: Run | None = None
    process: Process | None = None
    covered: dict[str, str] = field(default_factory=dict)  # shard id -> edition

    def __call__(self) -> None:
        world, clock, folder = self.machine.world, self.machine.clock, self.folder
        self.process = world.current
        self.run = new_run(self.machine, folder, "index build")
        with self.run as run:
            heartbeats = start_heartbeats(self.machine, run)
            try:
                with _sweeping(run, self.settings):
                    began_with = live_number(folder)
                    covered = CoveredShards(Collection(folder, IDENTITY))
                    if not covered.indexed:
                        return
                    clock.sleep(world.rng.choice((0.1, 5.0)))
                    self.covered = {id: one.edition for id, one in covered.indexed.items()}
                    manifest = filled_segment(folder, run, tuple(covered.indexed.values()))
                    publish(folder, manifest, run, began_with)
                    sweep(folder, run, self.settings)
                run.finish("done", {})
            finally:
                heartbeats.over = True


def filled_segment(folder: Folder, run: Run, shards: tuple[IndexedShard, ...]) -> Manifest:
    """Write one segment of these shards; returns the manifest of a generation of it."""
    segment_id, content = f"{run.id}-000", b"rows"
    rows = sum(shard.rows for shard in shards)
    folder.write_whole(segment_file(segment_id, "rows.arrow"), content, run.id)
    files = {"rows.arrow": FileSum.of(content)}
    record = SegmentRecord(segment_id, rows, 8, {}, shards, files).to_json()
    folder.write_whole(segment_file(segment_id, "segment.json"), record, run.id)
    entry = SegmentEntry(segment_id, rows, FileSum.of(record))
    return Manifest(run.id, 0.0, IDENTITY.encoder, IDENTITY.fingerprint, 8, {}, {}, (entry,))


@dataclass
class Searching:
    """A searcher in a simulated world: opens the index, answers for a while from what it opened,
    opens again. answers: how often it could."""

    machine: SimulatedMachine
    folder: Folder
    rounds: int = 3
    answers: int = 0

    def __call__(self) -> None:
        world, clock = self.machine.world, self.machine.clock
        for _ in range(self.rounds):
            clock.sleep(world.rng.uniform(0, 30))
            generation = open_current(self.folder)
            if generation is None:
                continue
            clock.sleep(world.rng.uniform(0, 60))
            for segment in generation.segments:
                self.folder.read_bytes(segment_file(segment.record.id, "rows.arrow"))
            self.answers += 1

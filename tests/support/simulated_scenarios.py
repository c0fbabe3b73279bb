"""One seed, one story: who runs when, what fails, and what must hold at every change and at the end.

`python -m benchmarks.simulation` tells ten thousand of them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from simulated_runs import (
    ROOT,
    Building,
    Embedding,
    Searching,
    SimulatedMachine,
    prepared,
    shard_number,
)
from simulated_store import Object, SerialFiles
from simulated_world import Process, SimulatedClock, World

from chiasm.index.segments import open_current
from chiasm.pipeline.collection import find_embedding, parquet_name, read_entry
from chiasm.pipeline.records import Shard
from chiasm.pipeline.storage import Folder

BUCKET_ROOT = ROOT.removeprefix("s3://")
FOREIGN = ("notes.txt", "index/segments/mine/data.f16", "ledger/readme.md", "runs/list.csv")
SHARDS = 3
LONGEST = 200.0  # seconds within which everything has begun and every fault has happened


class Broken(AssertionError):
    """A promise was broken."""


@dataclass
class Story:
    """seed: decides everything. broken: the promises that were."""

    seed: int
    embeddings: list[Embedding] = field(default_factory=list)
    builds: list[Building] = field(default_factory=list)
    searches: list[Searching] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.world = World(self.seed)
        self.rng = random.Random(f"story {self.seed}")
        self.folder = Folder(ROOT, SerialFiles("s3", lambda: self.world.store))
        for name in FOREIGN:
            self.world.store.objects[f"{BUCKET_ROOT}/{name}"] = Object(b"a person's own")
        self.published = False
        self._seen = 0
        self.world.on_change = self._check_changes
        self.machines = [self._machine(number) for number in range(2)]
        self.stalled: set[str] = set()  # names of processes that others may take for dead

    def tell(self) -> list[str]:
        """Everything happens; returns the promises that were broken."""
        self._begin()
        self.world.run()
        self._finish()
        return self.broken

    def _machine(self, number: int) -> SimulatedMachine:
        wrong = self.rng.choice((0.0, 0.0, self.rng.uniform(-90, 90), self.rng.uniform(-1e5, 1e5)))
        clock = SimulatedClock(self.world, wrong, self.rng.uniform(0.999, 1.001))
        # Two machines of one name: a stateful set's pods in two clusters.
        return SimulatedMachine(self.world, f"boot-{number}", "worker-0", clock)

    def _begin(self) -> None:
        rng = self.rng
        shards = [shard_number(number) for number in range(SHARDS)]
        newer = [shard_number(0, "2"), *shards[1:]]
        for number in range(2):
            machine = rng.choice(self.machines)
            embedding = Embedding(machine, rng.choice((shards, shards, newer)), self.folder)
            self.embeddings.append(embedding)
            self._start(f"embed {number}", machine, embedding)
        for number in range(rng.choice((1, 2, 2))):
            machine = rng.choice(self.machines)
            building = Building(machine, self.folder)
            self.builds.append(building)
            self._start(f"build {number}", machine, building)
        machine = rng.choice(self.machines)
        search = Searching(machine, self.folder)
        self.searches.append(search)
        self._start("search", machine, search)
        for machine in self.machines:
            if rng.random() < 0.5:
                self._at(rng.uniform(0, LONGEST), lambda clock=machine.clock: self._set(clock))

    def _start(self, name: str, machine: SimulatedMachine, command: Callable[[], None]) -> None:
        """Start a process some time; perhaps it stops for a while, perhaps it is killed."""
        rng = self.rng
        begins = rng.uniform(0, 20)
        pid = rng.choice((7, 8, 9)) + 3 * len(machine.processes)

        def begin() -> None:
            process = machine.start(name, command, pid)
            if rng.random() < 0.3:
                self._at(rng.uniform(0, 30), lambda: self.world.kill(process))
            if rng.random() < 0.2:
                seconds = rng.choice((5.0, 29.0, 100.0))
                if seconds > 30:
                    self.stalled.add(name)
                self._at(rng.uniform(0, 20), lambda: self.world.stall(process, seconds))

        self._at(begins, begin)

    def _at(self, seconds: float, action: Callable[[], None]) -> None:
        self.world.at(seconds, action)

    def _set(self, clock: SimulatedClock) -> None:
        clock.wrong += self.rng.choice((1.0, -1.0, 61.0, -61.0, 3600.0, -3600.0))

    def _finish(self) -> None:
        """Whatever happened, one more run of each command, undisturbed, leaves all in order."""
        self.world.loss = 0.0
        machine = SimulatedMachine(self.world, "boot-9", "other", SimulatedClock(self.world))
        shards = [shard_number(0, "2"), *(shard_number(number) for number in range(1, SHARDS))]
        for name, command in (
            ("last embed", Embedding(machine, shards, self.folder)),
            ("last build", Building(machine, self.folder)),
        ):
            machine.start(name, command, 99 + len(machine.processes))
            self.world.run()
        for process in self.world.processes:
            if process.error is not None and not self._expected(process):
                self._fail(f"{process.name} ended with {process.error!r}")
        for shard in shards:
            self._check_shard(shard)
        generation = open_current(self.folder)
        if generation is None or len(generation.indexed_shards()) != SHARDS:
            self._fail("the index does not cover every shard")
        self._check_leftovers()
        for name in FOREIGN:
            if f"{BUCKET_ROOT}/{name}" not in self.world.store.objects:
                self._fail(f"{name} is a person's own and was removed")

    def _expected(self, process: Process) -> bool:
        """A process that stood still for longer than others wait may find itself marked killed."""
        return process.name in self.stalled

    def _check_shard(self, shard: Shard) -> None:
        entry, embedding = read_entry(self.folder, shard.id), find_embedding(self.folder, shard.id)
        expected, parquet = prepared(shard)
        if entry is None or embedding is None or embedding.edition != expected.edition:
            self._fail(f"{shard.id} is not embedded in its last version")
        elif self.folder.read_bytes(parquet_name(shard.id)) != parquet:
            self._fail(f"{shard.id} has other rows than its ledger tells")

    def _check_leftovers(self) -> None:
        objects = self.world.store.objects
        named = {f"index/segments/{entry.id}" for manifest in self._manifests() for entry in manifest}
        for path in objects:
            name = path.removeprefix(f"{BUCKET_ROOT}/")
            if name.startswith("index/segments/2") and name.rpartition("/")[0] not in named:
                self._fail(f"{name} is left, and no generation names it")

    def _manifests(self) -> list[list]:
        raise NotImplementedError

    def _check_changes(self) -> None:
        """What must hold after every change."""
        log = self.world.store.log
        for path, new in log[self._seen :]:
            name = path.removeprefix(f"{BUCKET_ROOT}/")
            if new is None and name.startswith("index/segments/"):
                self._check_removed_segment(name)
        self._seen = len(log)
        self._check_current()
        self._check_claims()

    def _fail(self, what: str) -> None:
        self.broken.append(f"seed {self.seed}, {self.world.now:.3f} s: {what}")

"""One seed, one story: who runs when, what fails, and what must hold at every change.

`python -m benchmarks.simulation` tells ten thousand of them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from unittest.mock import patch

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

from chiasm.index.segments import SegmentEntry, numbers, open_current, segment_file
from chiasm.index.segments.generations import read_manifest
from chiasm.index.segments.names import CURRENT, manifest_name
from chiasm.pipeline.collection import find_embedding, parquet_name, read_entry
from chiasm.pipeline.records import Shard
from chiasm.pipeline.storage import Folder, retry

BUCKET_ROOT = ROOT.removeprefix("s3://")
FOREIGN = ("notes.txt", "index/segments/mine/data.f16", "ledger/readme.md", "runs/list.csv")
SHARDS = 3
CHANGES = 16  # a process makes about half as many: before or after one it is killed, or stalls


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
        self.rng = random.Random(f"story {self.seed}")
        self.world = World(self.seed, loss=self.rng.choice((0.0, 0.02, 0.1)))
        self.folder = Folder(ROOT, SerialFiles("s3", lambda: self.world.store))
        for name in FOREIGN:
            self.world.store.objects[f"{BUCKET_ROOT}/{name}"] = Object(b"a person's own")
        self._published = False
        self._seen = 0
        self.world.on_change = self._check_changes
        self.machines = [self._machine(number) for number in range(2)]
        self.stalled: set[str] = set()  # names of processes that others may take for dead

    def tell(self) -> list[str]:
        """Everything happens; returns the promises that were broken."""
        waits = SimpleNamespace(sleep=self.world.pause)
        with patch.multiple(retry, time=waits, random=self.world.rng):
            self._begin()
            self.world.run()
        self._check_best()
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
                self._at(rng.uniform(0, 60), lambda clock=machine.clock: self._set(clock))

    def _start(self, name: str, machine: SimulatedMachine, command: Callable[[], None]) -> None:
        """Start a process some time; perhaps it stops for a while, perhaps it is killed."""
        rng = self.rng
        begins = rng.uniform(0, 20)

        def begin() -> None:
            process = machine.start(name, command)
            if rng.random() < 0.3:
                process.at_change[rng.randint(1, CHANGES)] = lambda: self.world.kill(process)
            if rng.random() < 0.5:
                seconds = rng.choice((2.0, 10.0, 29.0, 100.0))
                if seconds > 30:
                    self.stalled.add(name)
                process.at_change[rng.randint(1, CHANGES)] = lambda: self.world.stall(
                    process, seconds
                )

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
            machine.start(name, command)
            self.world.run()
        for process in self.world.processes:
            if process.error is not None and not self._excused(process):
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

    def _check_shard(self, shard: Shard) -> None:
        entry, embedding = read_entry(self.folder, shard.id), find_embedding(self.folder, shard.id)
        expected, parquet = prepared(shard)
        if entry is None or embedding is None or embedding.edition != expected.edition:
            self._fail(f"{shard.id} is not embedded in its last version")
        elif self.folder.read_bytes(parquet_name(shard.id)) != parquet:
            self._fail(f"{shard.id} has other rows than its ledger tells")

    def _check_best(self) -> None:
        """Of all that builds have published to the end, nothing covers more than what is live.
        Where a shard was embedded anew meanwhile, that depends on the moment."""
        if any(embedding.shards != self.embeddings[0].shards for embedding in self.embeddings):
            return
        live = open_current(self.folder)
        for build in self.builds:
            if build.run is None or build.run.record.state != "done" or live is None:
                continue
            covered = set(build.covered.items())
            answering = {id: one.edition for id, one in live.indexed_shards().items()}
            if covered > set(answering.items()):
                self._fail(f"{build.run.id} covers more than what is live")

    def _check_leftovers(self) -> None:
        named = {entry.id for number in numbers(self.folder) for entry in self._segments(number)}
        for name in self._names("index/segments/2"):
            if name.split("/")[2] not in named:
                self._fail(f"{name} is left, and no generation names it")

    def _check_changes(self) -> None:
        """What must hold after every change."""
        log = self.world.store.log
        for path, new in log[self._seen :]:
            name = path.removeprefix(f"{BUCKET_ROOT}/")
            if new is None:
                self._check_removed(name)
            elif name == CURRENT:
                self._published = True
        self._seen = len(log)
        if self._published:
            self._check_current()
        self._check_claims()

    def _check_removed(self, name: str) -> None:
        """Nothing of a build is removed by another while it may still publish it."""
        remover = self.world.last
        assert remover is not None
        for build in self.builds:
            process = build.process
            if process is None or process is remover or not process.alive or build.run is None:
                continue
            if build.run.id in name and not self._excused(process):
                self._fail(f"{remover.name} removed {name} of {process.name}, which lives")

    def _check_current(self) -> None:
        """There is an index to open: CURRENT names a generation that is whole."""
        objects = self.world.store.objects
        current = objects.get(f"{BUCKET_ROOT}/{CURRENT}")
        if current is None:
            self._fail("CURRENT is gone")
            return
        manifest = objects.get(f"{BUCKET_ROOT}/{manifest_name(int(current.data))}")
        if manifest is None:
            self._fail(f"CURRENT names generation {int(current.data)}, which is not there")
            return
        for entry in json.loads(manifest.data)["segments"]:
            for base in ("rows.arrow", "segment.json"):
                if f"{BUCKET_ROOT}/{segment_file(entry['id'], base)}" not in objects:
                    self._fail(f"CURRENT names segment {entry['id']}, whose {base} is gone")

    def _check_claims(self) -> None:
        """No shard is embedded by two runs at the same moment."""
        at_work = [
            embedding
            for embedding in self.embeddings
            if embedding.working_on
            and embedding.process is not None
            and embedding.process.alive
            and not self._excused(embedding.process)
        ]
        shards = [embedding.working_on for embedding in at_work]
        if len(shards) != len(set(shards)):
            self._fail(f"two live runs embed {shards[0]}")

    def _excused(self, process: Process) -> bool:
        """Whether others may take it for dead: it stands still for longer than they wait."""
        return process.name in self.stalled

    def _segments(self, number: int) -> tuple[SegmentEntry, ...]:
        return read_manifest(self.folder, number).segments

    def _names(self, under: str) -> list[str]:
        prefix = f"{BUCKET_ROOT}/"
        names = (path.removeprefix(prefix) for path in self.world.store.objects)
        return [name for name in names if name.startswith(under)]

    def _fail(self, what: str) -> None:
        self.broken.append(f"seed {self.seed}, {self.world.now:.3f} s: {what}")

"""One seed, one story: who runs when, what fails, and what must hold at every change.

`python -m benchmarks.simulation` tells ten thousand of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import patch

from simulated_machine import SimulatedMachine
from simulated_plots import CHOICES, PLOTS, PUBLISH, SEARCH
from simulated_promises import Promises
from simulated_runs import (
    DIES,
    RAISES,
    RETURNED,
    ROOT,
    UNREADABLE,
    Building,
    Embedding,
    InjectedFailure,
    Searching,
    answer_from,
    is_done,
    parsing_once,
    put_prepared,
    shard_number,
)
from simulated_store import COLLECTION, Object, SerialFiles
from simulated_world import Moment, Process, SimulatedClock, World

from chiasm.index import retrieve as retrieving
from chiasm.index.plan import IndexSettings
from chiasm.index.segments import numbers, open_current, segment_file, verified
from chiasm.index.segments.names import CURRENT, GENERATIONS, manifest_name
from chiasm.pipeline.collection import find_embedding, parquet_name
from chiasm.pipeline.errors import CollectionError
from chiasm.pipeline.storage import Folder, retry

FOREIGN = ("notes.txt", "index/segments/mine/data.f16", "ledger/readme.md", "runs/list.csv")
Action = Callable[[], None]
LONGEST = 3000.0  # seconds after which a story that goes on never ends
LAGGING = ("embeddings", "ledger", "summaries", "index/segments")


class Story:
    """seed: decides everything. plot: the name of one of PLOTS; the seed decides where it is
    empty."""

    def __init__(self, seed: int, plot: str = "") -> None:
        self.seed = seed
        self.rng = rng = random.Random(f"story {seed}")
        self.plot = PLOTS[plot or CHOICES[seed % len(CHOICES)]]
        self.world = World(seed, rng.choice((0.0, 0.02, 0.1)), self.plot.delay)
        self.store = self.world.store
        self.folder = Folder(ROOT, SerialFiles("s3", lambda: self.store))
        for name in FOREIGN:
            self.store.objects[f"{COLLECTION}{name}"] = Object(b"a person's own")
        self.shards = [shard_number(number) for number in range(self.plot.shards)]
        self.newer = [shard_number(0, "2"), *self.shards[1:]]  # the first was replaced since
        for shard in self.shards[: self.plot.ready]:
            put_prepared(self.store, shard)
        if rng.random() < 0.2:
            self.store.lag, self.store.lagging = rng.uniform(0, 10), LAGGING
        self.promises = Promises(self.world)
        self.world.on_change = self.promises.check_changes
        keep = rng.choice(self.plot.keep)
        self.settings = IndexSettings(keep_generations=rng.choice((1, 3)), keep_seconds=keep)
        count = 4 if self.plot.apart else 2
        self.machines = [self._machine(number) for number in range(count)]
        self.unreachable = 0.0  # seconds for which the store answers nobody

    def tell(self) -> list[str]:
        """Everything happens; returns the promises that were broken."""
        with self._surroundings():
            self._begin()
            self._run()
            self._check_best()
            self._finish()
        return self.promises.broken

    @contextmanager
    def _surroundings(self) -> Iterator[None]:
        """Waits are the world's, and nothing is remembered outside it."""
        waits = SimpleNamespace(sleep=self.world.pause)
        with (
            patch.multiple(retry, time=waits, random=self.world.rng),
            patch.multiple(verified, is_remembered=lambda name: False, remember=lambda name: None),
            patch.object(retrieving, "retrieve_from", answer_from),
            parsing_once(),
        ):
            yield

    def _run(self) -> None:
        self.world.run(LONGEST)
        for process in self.world.processes:
            if process.alive:
                self.promises.fail(f"{process.name} never ends")
                process.killed = True

    def _machine(self, number: int) -> SimulatedMachine:
        rng = self.rng
        wrong = rng.choice((0.0, rng.uniform(-90, 90), rng.uniform(-1e5, 1e5)))
        clock = SimulatedClock(self.world, wrong, rng.uniform(0.999, 1.001))
        # Machines of one name: a stateful set's pods in two clusters.
        return SimulatedMachine(self.world, f"boot-{number}", "worker-0", clock)

    def _begin(self) -> None:
        rng, plot, folder = self.rng, self.plot, self.folder
        machines = iter([*self.machines, *self.machines]) if plot.apart else None

        def machine() -> SimulatedMachine:
            return next(machines) if machines else rng.choice(self.machines)

        for number in range(rng.choice(plot.embeds)):
            shards = self.newer if rng.random() < plot.renewed else self.shards
            embedding = Embedding(machine(), shards, folder, self._failures(), plot.seconds)
            embedding.on_take = self.promises.check_taken
            self.promises.embeddings.append(embedding)
            self._start(f"embed {number}", embedding, plot.embeds_stop)
        for number in range(rng.choice(plot.builds)):
            building = Building(machine(), folder, self.settings)
            building.newer, building.fails = rng.random() < 0.15, rng.random() < plot.fail
            self.promises.builds.append(building)
            stop = () if number and plot.later else plot.builds_stop
            self._start(f"build {number}", building, stop)
        for number in range(plot.searches):
            self._start(f"search {number}", Searching(machine(), folder), tuple(SEARCH))
        self._disturb()

    def _failures(self) -> dict[str, list[str]]:
        """What happens to the attempts at some shards."""
        rng = self.rng
        return {
            shard.id: [rng.choice((RAISES, RAISES, DIES, RETURNED, UNREADABLE)) for _ in range(3)]
            for shard in self.shards
            if rng.random() < 0.15
        }

    def _disturb(self) -> None:
        """What happens to machines and to the store."""
        rng, world = self.rng, self.world
        for machine in self.machines:
            if rng.random() < 0.5:
                world.at(rng.uniform(0, 60), lambda clock=machine.clock: self._set(clock))
            if rng.random() < 0.05:
                world.at(rng.uniform(0, 60), machine.reboot)
        if rng.random() < self.plot.unreachable:
            self.unreachable = seconds = rng.choice((5.0, 30.0))
            world.at(rng.uniform(0, 40), lambda: world.be_unreachable(seconds))

    def _start(
        self, name: str, command: Embedding | Building | Searching, stop: tuple[Moment, ...]
    ) -> None:
        """Start a process some time; perhaps it stops for a while, perhaps it is killed."""
        rng, plot, world = self.rng, self.plot, self.world

        def begin() -> None:
            process = command.machine.start(name, command)
            if stop and rng.random() < plot.stall:
                self._plan(process, rng.choice(stop), self._stall(process, command))
            if stop and rng.random() < plot.kill:
                self._plan(process, rng.choice(stop), lambda: world.kill(process))

        world.at(rng.uniform(*(plot.later if plot.later and not stop else plot.within)), begin)

    def _plan(self, process: Process, moment: Moment, action: Action) -> None:
        count = 1 if moment in PUBLISH else self.rng.choice((1, 1, 1, 2, 3, 5))
        process.plans[moment] = (count, action)

    def _stall(self, process: Process, command: Embedding | Building | Searching) -> Action:
        """It stands still for a while, or until another one comes to some point."""
        rng, world, plot = self.rng, self.world, self.plot
        seconds = rng.choice(plot.stalls)
        loses = rng.random() < plot.loses
        moment = rng.choice(plot.until) if rng.random() < plot.meet else None
        other = rng.choice((0.0, 1.0, 10.0, 29.0))

        def stall() -> None:
            if loses and isinstance(command, Building):
                self._lose_rows(command)
            if moment is None:
                world.stall(process, seconds)
            else:
                world.stall_until(process, moment, seconds, other)

        return stall

    def _lose_rows(self, build: Building) -> None:
        """A file of a build that is not published yet is gone."""
        segment = f"{build.run.id if build.run else 'none'}-000"
        manifests = [self.promises.object(name) for name in self.promises.names(GENERATIONS)]
        published = any(one is not None and segment.encode() in one.data for one in manifests)
        path = COLLECTION + segment_file(segment, "rows.arrow")
        if path in self.store.objects and not published:
            del self.store.objects[path]
            build.incomplete = True

    def _set(self, clock: SimulatedClock) -> None:
        clock.wrong += self.rng.choice((1.0, -1.0, 61.0, -61.0, 3600.0, -3600.0))

    def _finish(self) -> None:
        """Whatever happened, one more run of each command, undisturbed, leaves all in order."""
        rng, promises = self.rng, self.promises
        self._check_ends()
        self.world.be_calm()
        self.store.lag = 0.0
        self._damage()
        other = SimulatedMachine(self.world, "boot-9", "other", SimulatedClock(self.world))
        embedding = Embedding(rng.choice((*self.machines, other)), self.newer, self.folder)
        embedding.on_take = promises.check_taken
        settings = replace(self.settings, keep_seconds=0)
        building = Building(rng.choice((*self.machines, other)), self.folder, settings)
        promises.embeddings.append(embedding)
        promises.builds.append(building)
        for name, command in (("last embed", embedding), ("last build", building)):
            process = command.machine.start(name, command)
            self._run()
            promises.check_error(process, unreachable=False)
        for shard in self.newer:
            if find_embedding(self.folder, shard.id) is None or not is_done(self.store, shard):
                promises.fail(f"{shard.id} is not embedded in its last version")
        generation = open_current(self.folder)
        if generation is None or len(generation.indexed_shards()) != len(self.shards):
            promises.fail("the index does not cover every shard")
        promises.check_leftovers()
        for name in FOREIGN:
            if promises.object(name) is None:
                promises.fail(f"{name} is a person's own and was removed")

    def _check_ends(self) -> None:
        builds = {build.process: build for build in self.promises.builds}
        for process in self.world.processes:
            build = builds.get(process)
            if isinstance(process.error, InjectedFailure):
                assert build is not None
                if not (self.unreachable or process.killed or self.store.lag):
                    self.promises.check_failed_build(build)
            elif not (build and build.incomplete and isinstance(process.error, CollectionError)):
                self.promises.check_error(process, unreachable=self.unreachable > 0)

    def _check_best(self) -> None:
        """Of all that builds have published to the end, nothing covers more than what is live.
        Where a shard was embedded anew meanwhile, that depends on the moment."""
        promises = self.promises
        if any(one.shards is self.newer for one in promises.embeddings) or self.store.lag:
            return
        live = open_current(self.folder)
        for build in promises.builds:
            if build.run is None or build.run.record.state != "done" or live is None:
                continue
            covered = set(build.covered.items())
            answering = {id: one.edition for id, one in live.indexed_shards().items()}
            if covered > set(answering.items()):
                promises.fail(f"{build.run.id} covers more than what is live")

    def _damage(self) -> None:
        """Perhaps a person removes or damages a file; what can be opened then must be."""
        rng, promises, store = self.rng, self.promises, self.store
        what = rng.choice(("", "", "rows", "rows", CURRENT, "manifest", "segment"))
        if what == "rows":
            path = f"{COLLECTION}{parquet_name(rng.choice(self.shards).id)}"
            if path in store.objects:
                store.remove(path)
            promises.pass_over()
            return
        live = open_current(self.folder)
        if live is None or not what:
            return
        promises.damaged = True
        name = {
            CURRENT: CURRENT,
            "manifest": manifest_name(live.number),
            "segment": segment_file(live.segments[0].record.id, "rows.arrow"),
        }[what]
        if what == CURRENT:
            store.put(COLLECTION + name, b"seven")
        else:
            store.remove(COLLECTION + name)
        promises.pass_over()
        whole = [number for number in numbers(self.folder) if not promises.missing(number)]
        try:
            opened = open_current(self.folder)
        except CollectionError:
            opened = None
        if whole and (opened is None or opened.number not in whole):
            promises.fail(f"{name} is damaged, and none of generations {whole} is opened")

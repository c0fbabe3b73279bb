"""What must hold in a simulated world: at every change, and once all is over."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from simulated_runs import Building, Embedding, is_done
from simulated_store import COLLECTION, Object
from simulated_world import Process, World

from chiasm.index.segments import segment_file
from chiasm.index.segments.names import CURRENT, GENERATIONS, SEGMENTS, manifest_name, numbers_in
from chiasm.pipeline.collection.ledger import shard_of_entry
from chiasm.pipeline.collection.parquet_schema import shard_id_of
from chiasm.pipeline.errors import CollectionError, StorageError
from chiasm.pipeline.tasks import Task


@dataclass
class Promises:
    """Looks at a world from outside. broken: the promises that were. damaged: whether a person has
    damaged the index, and it was not built anew yet."""

    world: World
    embeddings: list[Embedding] = field(default_factory=list)
    builds: list[Building] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    damaged: bool = False
    _checked: int = 0  # changes of the store
    _live: int = 0
    _replaced: dict[int, float] = field(default_factory=dict)  # when a generation ceased to be live
    _manifests: dict[str, bytes] = field(default_factory=dict)  # the last of each name
    _there: set[str] = field(default_factory=set)  # manifests that were not removed
    _published: set[str] = field(default_factory=set)  # runs
    _rows_are_whole: dict[str, bool] = field(default_factory=dict)

    def fail(self, what: str) -> None:
        self.broken.append(f"seed {self.world.seed}, {self.world.now:.3f} s: {what}")

    def object(self, name: str) -> Object | None:
        return self.world.store.objects.get(COLLECTION + name)

    def names(self, under: str) -> list[str]:
        start = len(COLLECTION)
        paths = self.world.store.objects
        return [path[start:] for path in paths if path.startswith(under, start)]

    def check_changes(self) -> None:
        """To be called after every change."""
        log = self.world.store.log
        index = False
        for path, new in log[self._checked :]:
            name = path[len(COLLECTION) :]
            index |= name.startswith("index/")
            if name.startswith("runs/"):
                self._hear(name)
            elif new is None:
                self._check_removed(name)
            else:
                self._check_put(name, new)
        self._checked = len(log)
        if index and self._live and not self.damaged:
            self._check_current()

    def pass_over(self) -> None:
        """The changes until now were a person's."""
        for path, new in self.world.store.log[self._checked :]:
            if new is None:
                self._there.discard(path[len(COLLECTION) :])
        self._checked = len(self.world.store.log)

    def _hear(self, name: str) -> None:
        """A record was renewed, by its own run or by one that marks it."""
        if not name.endswith(".json"):
            return
        process = self.world.last
        for command in (*self.embeddings, *self.builds):
            if command.process is process and command.run is not None and command.run.id in name:
                assert process is not None
                process.silent = 0.0

    def _check_put(self, name: str, new: Object) -> None:
        if name == CURRENT:
            self.damaged = False
            self._replaced[self._live] = self.world.now
            self._live = self._number_of(new)
            self._replaced.pop(self._live, None)
        elif name.startswith(f"{GENERATIONS}/") and name.endswith(".json"):
            if name in self._there and self._manifests[name] != new.data:
                self.fail(f"{name} was put over another")
            self._manifests[name] = new.data
            self._there.add(name)
            run = json.loads(new.data)["run"]
            if run in self._published:
                self.fail(f"{run} has published twice, at last {name}")
            self._published.add(run)
            self._replaced[numbers_in([name], "json")[0]] = self.world.now
        elif shard_id := shard_id_of(name):
            self._check_pair(shard_id)
        elif shard_id := shard_of_entry(name) if name.startswith("ledger/") else None:
            entry = json.loads(new.data)
            whole = self._rows_are_whole.get(shard_id) and not self._doubted()
            if entry.get("set_aside") and whole:
                self.fail(f"the ledger entry of {shard_id}, whose rows are whole, is gone")
            self._rows_are_whole[shard_id] = False

    def _check_pair(self, shard_id: str) -> None:
        """A Parquet file is put after its ledger entry."""
        mine = [one for one in self.embeddings if one.process is self.world.last]
        writers = [one for one in self.embeddings if one.working_on == shard_id]
        shards = [shard for one in mine for shard in one.shards if shard.id == shard_id]
        done = any(is_done(self.world.store, shard) for shard in shards)
        if not done and len(writers) == 1 and not self._doubted():
            self.fail(f"the rows of {shard_id} are there before their ledger entry")
        self._rows_are_whole[shard_id] = True

    def _check_removed(self, name: str) -> None:
        """Nothing of a build is removed by another while it may still publish it; no generation
        while somebody may search it."""
        remover = self.world.last
        assert remover is not None
        for build in self.builds:
            process = build.process
            if process is None or process is remover or not process.alive or build.run is None:
                continue
            if build.run.id in name and not self.world.may_be_dead(process):
                self.fail(f"{remover.name} removed {name} of {process.name}, which lives")
        segment = name.rpartition("/")[0]
        writers = [one.process for one in self.builds if one.run and one.run.id in name]
        late = any(one is not None and self.world.may_be_dead(one) for one in writers)
        record = self.object(f"{segment}/segment.json")
        if name.endswith("rows.arrow") and record is not None and not late:
            self.fail(f"{segment} has a record and no rows")
        self._there.discard(name)
        for number in numbers_in([name], "json") if name.startswith(f"{GENERATIONS}/") else []:
            kept = max(one.settings.keep_seconds for one in self.builds if one.process is remover)
            age = self.world.now - self._replaced.get(number, self.world.now)
            if (number == self._live or age < kept) and not self._may_be_dead(number):
                self.fail(f"{name} was removed {age:.1f} s after it was replaced, before {kept} s")

    def _may_be_dead(self, number: int) -> bool:
        """Whether the build that made a generation may have been taken for dead."""
        made = json.loads(self._manifests[manifest_name(number)])["run"]
        builders = [one.process for one in self.builds if one.run and one.run.id == made]
        return any(one is not None and self.world.may_be_dead(one) for one in builders)

    def _check_current(self) -> None:
        """There is an index to open: CURRENT names a generation that is whole. Where its build may
        have been taken for dead at the very last step, another that is whole."""
        current = self.object(CURRENT)
        if current is None:
            self.fail("CURRENT is gone")
        elif missing := self.missing(self._number_of(current)):
            others = numbers_in(self.names(GENERATIONS), "json")
            dead = self._may_be_dead(self._number_of(current))
            other = dead and not all(map(self.missing, others))
            if not other:
                self.fail(f"CURRENT names generation {self._number_of(current)}, without {missing}")

    @staticmethod
    def _number_of(current: Object) -> int:
        return int(current.data.partition(b"\n")[0])

    def missing(self, number: int) -> str:
        """A file that a generation lacks, "" where it is whole."""
        manifest = self.object(manifest_name(number))
        if manifest is None:
            return manifest_name(number)
        for entry in json.loads(manifest.data)["segments"]:
            for base in ("rows.arrow", "segment.json"):
                name = segment_file(entry["id"], base)
                if self.object(name) is None:
                    return name
        return ""

    def check_taken(self, embedding: Embedding, task: Task, marked: bool) -> None:
        """No shard is embedded by two runs at the same moment, none that is done, and none by a run
        that knows that it was taken for dead."""
        world = self.world
        if marked:
            self.fail(f"{embedding.working_on} is embedded by a run that is marked as killed")
        for other in self.embeddings:
            process = other.process
            if other is embedding or other.working_on != embedding.working_on or process is None:
                continue
            stands = process.stands_since is not None or other.taken <= process.woke
            if process.alive and not (stands and world.may_be_dead(process)):
                self.fail(f"two live runs embed {other.working_on}")
        fresh = not world.store.lag and not self._doubted()
        if fresh and not task.returned and is_done(world.store, task.shard):
            self.fail(f"{task.shard.id} is embedded again")

    def _doubted(self) -> bool:
        """Whether a run that embeds may have been taken for dead."""
        processes = [one.process for one in self.embeddings if one.process is not None]
        return any(self.world.may_be_dead(process) for process in processes)

    def check_error(self, process: Process, *, unreachable: bool) -> None:
        """Nothing ends in an error but what was taken for dead, or found no store."""
        if process.error is None:
            return
        found_dead = self.world.may_be_dead(process) and isinstance(process.error, CollectionError)
        no_store = unreachable and isinstance(process.error, StorageError)
        if not found_dead and not no_store:
            self.fail(f"{process.name} ended with {process.error!r}")

    def check_leftovers(self) -> None:
        """Every segment is named by a generation."""
        named = {
            entry["id"]
            for name in self.names(GENERATIONS)
            if name.endswith(".json") and (manifest := self.object(name)) is not None
            for entry in json.loads(manifest.data)["segments"]
        }
        for name in self.names(f"{SEGMENTS}/2"):
            if name.split("/")[2] not in named:
                self.fail(f"{name} is left, and no generation names it")

    def check_failed_build(self, build: Building) -> None:
        """A build that fails leaves nothing."""
        for name in self.names(f"{SEGMENTS}/{build.run.id if build.run else 'none'}"):
            self.fail(f"{name} is left by a build that has failed")

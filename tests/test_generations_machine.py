"""Generations by a state machine: builds that overlap, fail, are killed and swept, edits between
them, files that go.

After every step the index opens as a model says, which knows nothing but what was published and
what was lost.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from simulated_runs import IDENTITY, filled_segment, prepared, shard_number
from simulated_store import SerialFiles, SimulatedStore

from chiasm.index.build.covered import CoveredShards
from chiasm.index.plan import IndexSettings
from chiasm.index.segments import (
    Generation,
    Manifest,
    deleted_rows,
    live_number,
    numbers,
    open_current,
    publish,
    publish_edit,
    read_manifest,
    rows_of_shards,
    sweep,
    with_deleted,
)
from chiasm.index.segments.names import CURRENT, manifest_name
from chiasm.pipeline.collection import Collection, Run, parquet_name, write_entry
from chiasm.pipeline.collection.processes import Machine, ProcessId
from chiasm.pipeline.errors import CollectionError
from chiasm.pipeline.storage import Folder

ROOT = "s3://bucket/c"
KEPT = IndexSettings(keep_generations=2, keep_seconds=3600.0)
SHARDS, VERSIONS = 3, ("1", "2")


class StillClock:
    """Nothing here waits, and every run is on this machine."""

    def time(self) -> float:
        return 1.8e9

    def monotonic(self) -> float:
        return 0.0

    def sleep(self, seconds: float, /) -> None:
        raise AssertionError("nothing is to be waited for")


class OneMachine(Machine):
    """A machine whose processes are the runs of the test."""

    def __init__(self) -> None:
        self.living: set[int] = set()
        self.next = 1

    def this_process(self) -> ProcessId:
        return ProcessId(self.next, "boot", "pid:[1]", self.next)

    def alive(self, process: ProcessId) -> bool:
        return process.pid in self.living


@dataclass
class Build:
    run: Run
    began_with: int
    covered: dict[str, str]  # shard id -> edition
    manifest: Manifest
    whole: bool = True
    published: list[int] = field(default_factory=list)


class Generations(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        logging.disable(logging.CRITICAL)
        self.store = SimulatedStore()
        self.folder = Folder(ROOT, SerialFiles("s3", lambda: self.store))
        self.machine = OneMachine()
        self.builds: list[Build] = []
        self.covers: dict[int, dict[str, str]] = {}  # what each generation covers
        self.deleted: dict[int, set[tuple[str, str]]] = {}  # and of that, what it leaves out
        self.count = 0

    def teardown(self) -> None:
        logging.disable(logging.NOTSET)

    @rule(number=st.integers(0, SHARDS - 1), version=st.sampled_from(VERSIONS))
    def embed(self, number: int, version: str) -> None:
        entry, parquet = prepared(shard_number(number, version))
        write_entry(self.folder, entry, "")
        self.folder.write_whole(parquet_name(entry.source.id), parquet)

    @precondition(lambda self: self.embedded() and len(self.builds) < 3)
    @rule()
    def begin(self) -> None:
        run = self.new_run()
        began_with = live_number(self.folder)
        indexed = CoveredShards(Collection(self.folder, IDENTITY)).indexed
        manifest = filled_segment(self.folder, run, tuple(indexed.values()))
        covered = {shard_id: one.edition for shard_id, one in indexed.items()}
        self.builds.append(Build(run, began_with, covered, manifest))

    @precondition(lambda self: self.builds)
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        build = self.builds.pop(data.draw(st.integers(0, len(self.builds) - 1)))
        before = set(numbers(self.folder))
        try:
            live = publish(self.folder, build.manifest, build.run, build.began_with)
        except CollectionError:
            assert not build.whole
        else:
            assert build.whole
            for number in set(numbers(self.folder)) - before:
                self.covers[number] = build.covered
                now = set().union(*(self.deleted[n] for n in before if n > build.began_with))
                since = now - self.deleted.get(build.began_with, set())
                self.deleted[number] = since & set(build.covered.items())
            answering = self.covers[live]
            assert not set(build.covered.items()) > set(answering.items())
        build.run.finish("done", {})
        build.run.__exit__(None, None, None)

    @precondition(lambda self: self.opens())
    @rule(shard=st.integers(0, SHARDS - 1), killed=st.booleans())
    def edit(self, shard: int, killed: bool) -> None:
        """Deletes the row of a shard. Killed, its manifest is there and CURRENT is as before."""
        run, before = self.new_run(), set(numbers(self.folder))
        wanted = shard_number(shard, "1").id

        def delete(base: Generation) -> Manifest:
            masks = [np.zeros(len(segment), bool) for segment in base.segments]
            for mask, segment in zip(masks, base.segments, strict=True):
                for one, rows in rows_of_shards(segment):
                    mask[rows] = one.shard == wanted
            return with_deleted(self.folder, run.id, base, masks)

        def die(when: str, kind: str, path: str) -> None:
            if killed and (when, kind) == ("before", "put") and path.endswith("index/CURRENT"):
                raise KeyboardInterrupt

        self.store.step = die
        try:
            live = publish_edit(self.folder, run, delete)
        except KeyboardInterrupt:
            self.machine.living.discard(run.record.pid)
        else:
            assert [live] == sorted(set(numbers(self.folder)) - before), "nothing is better"
            run.finish("done", {})
            run.__exit__(None, None, None)
        self.store.step = lambda when, kind, path: None
        (number,) = set(numbers(self.folder)) - before
        parent = read_manifest(self.folder, number).parent
        assert parent in before
        rows = self.covers[parent]
        for other in (other for other in before if other > parent):
            assert not set(self.covers[other].items()) > set(rows.items()), "newer rows stay"
        self.covers[number] = rows
        own = {(wanted, rows[wanted])} if wanted in rows else set()
        self.deleted[number] = self.deleted[parent] | own

    @precondition(lambda self: self.builds)
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        build = self.builds.pop(data.draw(st.integers(0, len(self.builds) - 1)))
        self.machine.living.discard(build.run.record.pid)

    @precondition(lambda self: self.builds)
    @rule(data=st.data(), base=st.sampled_from(["rows.arrow", "segment.json"]))
    def lose_a_file_of_a_build(self, data: st.DataObject, base: str) -> None:
        build = data.draw(st.sampled_from(self.builds))
        self.folder.remove(f"index/segments/{build.run.id}-000/{base}")
        build.whole = False

    @rule()
    def sweep(self) -> None:
        run = self.new_run()
        before = set(numbers(self.folder))
        live = live_number(self.folder)
        sweep(self.folder, run, KEPT)
        after = set(numbers(self.folder))
        assert not before or live in after or live not in before
        assert after >= set(sorted(before)[-KEPT.keep_generations :])
        run.finish("done", {})
        run.__exit__(None, None, None)

    @rule(hours=st.sampled_from([0.5, 2.0]))
    def hours_pass(self, hours: float) -> None:
        self.store.now += 3600 * hours

    @precondition(lambda self: self.folder.exists(CURRENT))
    @rule(content=st.sampled_from([b"", b"000099\n", b"\xff"]))
    def damage_current(self, content: bytes) -> None:
        self.folder.write_whole(CURRENT, content)

    @invariant()
    def the_index_opens(self) -> None:
        """The generation that CURRENT names, else the newest that is whole."""
        there = set(numbers(self.folder))
        named = live_number(self.folder)
        if not there:
            return
        generation = open_current(self.folder)
        assert generation is not None
        assert generation.number == (named if named in there else max(there))
        covered = {id: one.edition for id, one in generation.indexed_shards().items()}
        assert covered == self.covers[generation.number]
        assert deleted_rows(generation).keys() == self.deleted[generation.number]

    @invariant()
    def nothing_of_a_living_build_is_removed(self) -> None:
        for build in self.builds:
            if build.whole:
                assert self.folder.exists(f"index/segments/{build.run.id}-000/segment.json")
                assert self.folder.exists(f"index/segments/{build.run.id}-000/rows.arrow")

    def opens(self) -> bool:
        try:
            return open_current(self.folder) is not None
        except CollectionError:
            return False

    def embedded(self) -> bool:
        return bool(self.folder.list("embeddings"))

    def new_run(self) -> Run:
        self.count += 1
        run = Run(
            self.folder,
            "index build",
            {},
            run_id=f"20270115T000000-{self.count:08x}",
            clock=StillClock(),
            machine=self.machine,
            heartbeats=False,
        )
        self.machine.living.add(self.machine.next)
        self.machine.next += 1
        return run.__enter__()


Generations.TestCase.settings = settings(max_examples=40, stateful_step_count=25)
TestGenerations = Generations.TestCase


def test_the_model_finds_a_sweep_that_takes_too_much(monkeypatch):
    """One that forgets that builds are running."""
    monkeypatch.setattr(Run, "others", lambda self: [])
    with pytest.raises(AssertionError):
        from hypothesis.stateful import run_state_machine_as_test

        run_state_machine_as_test(Generations, settings=settings(max_examples=40))


def test_manifest_names_are_those_of_the_machine():
    assert manifest_name(7) == "index/generations/000007.json"

"""What runs in a simulated world: embedding runs, builds of the index, searchers, by product code.

Runs, work lists, ledgers, publishing, sweeping and opening are the product's own. Simulated are the
store, the clocks, the machines, and the two things that only take time: encoding a shard (its
Parquet file is prepared once) and filling a segment (its files are a few bytes).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
from fake_encoder import FakeEncoder
from pyarrow.parquet import ParquetFile
from simulated_machine import GreenletEvent, GreenletLock, SimulatedMachine
from simulated_store import COLLECTION, Object, SerialFiles, SimulatedStore
from simulated_world import Process
from tiny_collection import add_shard

from chiasm.index import retrieve as retrieving
from chiasm.index.build.covered import CoveredShards
from chiasm.index.plan import IndexSettings
from chiasm.index.query.open_index import OpenIndex
from chiasm.index.segments import (
    FileSum,
    IndexedShard,
    Manifest,
    SegmentEntry,
    live_number,
    manifest,
    open_current,
    publish,
    record,
    segment_file,
    sweep,
    sweeping,
)
from chiasm.index.segments.partial import SegmentGone
from chiasm.index.segments.record import SegmentRecord
from chiasm.pipeline.attempts import record_failure, requeue_or_quarantine
from chiasm.pipeline.collection import (
    FOLDERS,
    Collection,
    Identity,
    LedgerEntry,
    Run,
    create_or_check,
    ledger,
    parquet_name,
    read_entry,
    run_record,
)
from chiasm.pipeline.collection.ledger import ledger_name
from chiasm.pipeline.collection.run_record import RunRecord, mark_name
from chiasm.pipeline.editions import EmbedSettings, edition_of
from chiasm.pipeline.embed import commit_shard
from chiasm.pipeline.errors import SourceError, StorageError
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.records import Shard
from chiasm.pipeline.storage import Folder
from chiasm.pipeline.tasks import Task
from chiasm.pipeline.worklist import RECHECK_SECONDS, WorkList

ROOT = f"s3://{COLLECTION.rstrip('/')}"
SETTINGS = EmbedSettings()
IDENTITY = Identity.of(FakeEncoder())
ATTEMPTS = 3
# What may happen to an attempt: the worker raises; the shard cannot be read; the worker dies after
# its commit, before it answers; another's death returns the shard to the list.
RAISES, UNREADABLE, DIES, RETURNED = "raises", "unreadable", "dies", "returned"


@functools.cache
def prepared(shard: Shard) -> tuple[LedgerEntry, bytes]:
    """The ledger entry and the Parquet file of a shard."""
    store = SimulatedStore()
    folder = Folder(ROOT, SerialFiles("s3", lambda: store))
    edition = edition_of(shard, IDENTITY.fingerprint, SETTINGS)
    add_shard(folder, shard.id.rpartition("-")[0], 1, edition=edition, shard=shard)
    entry = read_entry(folder, shard.id)
    assert entry is not None
    return entry, store.objects[f"{COLLECTION}{parquet_name(shard.id)}"].data


def shard_number(number: int, version: str = "1") -> Shard:
    return Shard(f"file:///nowhere/s{number}.tar", f"s{number}-0123456789", 4096, version)


def put_prepared(store: SimulatedStore, shard: Shard) -> None:
    """The shard was embedded before the story begins."""
    entry, parquet = prepared(shard)
    store.objects[f"{COLLECTION}{ledger_name(shard.id)}"] = Object(entry.to_json())
    store.objects[f"{COLLECTION}{parquet_name(shard.id)}"] = Object(parquet)


def is_done(store: SimulatedStore, shard: Shard) -> bool:
    """Whether its files are those of this shard, looked at from outside."""
    entry, parquet = prepared(shard)
    file = store.objects.get(f"{COLLECTION}{parquet_name(shard.id)}")
    stored = store.objects.get(f"{COLLECTION}{ledger_name(shard.id)}")
    if file is None or file.data != parquet or stored is None:
        return False
    fields = json.loads(stored.data)
    # Another run may have begun to replace it.
    return entry.edition in (fields["edition"], fields.get("replaced", {}).get("edition"))


class ParsedParquet:
    """Stands for `pq.ParquetFile`, of whose files only the footer is read."""

    def __init__(self, file: Any, **options: object) -> None:
        self.metadata = _footer(file.read())

    def __enter__(self) -> ParsedParquet:
        return self

    def __exit__(self, *raised: object) -> None:
        pass


@functools.lru_cache(100)
def _footer(parquet: bytes) -> pq.FileMetaData:
    return ParquetFile(pa.BufferReader(parquet)).metadata


@contextmanager
def parsing_once() -> Iterator[None]:
    """Files of the same content are parsed once, and JSON is written by the encoder in C, which
    does not indent."""
    compact = SimpleNamespace(loads=json.loads, dumps=_compact)
    with ExitStack() as stack:
        for kind in (RunRecord, LedgerEntry, Manifest, SegmentRecord):
            parse = functools.lru_cache(200)(kind.from_json)
            stack.enter_context(patch.object(kind, "from_json", parse))
        for module in (run_record, ledger, manifest, record):
            stack.enter_context(patch.object(module, "json", compact))
        stack.enter_context(patch.object(pq, "ParquetFile", ParsedParquet))
        yield


def _compact(value: object, **options: object) -> str:
    return json.dumps(value, ensure_ascii=False)


@dataclass
class PreparedRows:
    """Stands for the `ParquetWriter` of a shard."""

    folder: Folder
    shard: Shard
    run_id: str

    def commit(self, footer: object) -> None:
        self.folder.write_whole(parquet_name(self.shard.id), prepared(self.shard)[1], self.run_id)


@dataclass
class Embedding:
    """`chiasm embed` in a simulated world. failures: by shard id, what happens to its attempts.
    seconds: what a shard takes, one of these. on_take: called with each shard that is to be
    embedded. working_on: the shard that it embeds just now; taken: since when."""

    machine: SimulatedMachine
    shards: Sequence[Shard]
    folder: Folder
    failures: dict[str, list[str]] = field(default_factory=dict)
    seconds: Sequence[float] = (0.1, 1.0, 5.0)
    on_take: Callable[[Embedding, Task, bool], None] = lambda embedding, task, marked: None
    run: Run | None = None
    working_on: str = ""
    taken: float = 0.0
    process: Process | None = None

    def __call__(self) -> None:
        self.process = self.machine.world.current
        self.run = new_run(self.machine, self.folder, "embed")
        with self.run as run:
            start_heartbeats(self.machine, run)
            try:
                run.sweep(FOLDERS)
                work = WorkList(self.shards, run, SETTINGS)
                work.skip_finished(create_or_check(self.folder, IDENTITY, run.id))
                while not work.over:
                    self._embed_next(run, work)
                run.sweep(FOLDERS, own=True)
                work.write_summaries()
                run.finish("done", {})
            finally:
                self.working_on = ""

    def _embed_next(self, run: Run, work: WorkList) -> None:
        world = self.machine.world
        marked = run._lapsed() and self._is_marked(run)
        task = work.take()
        if task is None:
            self.machine.clock.sleep(RECHECK_SECONDS)
            return
        self.working_on, self.taken = task.shard.id, world.now
        self.on_take(self, task, marked)
        self.machine.clock.sleep(world.rng.choice(self.seconds))
        failures = self.failures.get(task.shard.id)
        what = failures.pop(0) if failures else ""
        if what == RAISES:
            record_failure(work, task, RuntimeError("no memory"), ATTEMPTS)
        elif what == UNREADABLE:
            record_failure(work, task, SourceError("a tar", expected="", found=""), ATTEMPTS)
        elif what == RETURNED:
            work.requeue(task)
        else:
            entry, _ = prepared(task.shard)
            rows: Any = PreparedRows(self.folder, task.shard, run.id)
            commit_shard(self.folder, entry, rows, rows, run.id)
            if what == DIES:
                requeue_or_quarantine(work, task, "its worker died", ATTEMPTS)
            else:
                work.finish(task, entry)
        self.working_on = ""

    def _is_marked(self, run: Run) -> bool:
        return f"{COLLECTION}{mark_name(run.id)}" in self.machine.world.store.objects


class NewerRecord(RunRecord):
    """A run's record as a later version of chiasm writes it."""

    def to_json(self) -> bytes:
        return json.dumps(json.loads(super().to_json()) | {"schema": 99}).encode()


def new_run(machine: SimulatedMachine, folder: Folder, command: str, *, newer: bool = False) -> Run:
    world = machine.world
    run_id = f"20270115T{int(world.now) % 1000000:06d}-{world.rng.getrandbits(32):08x}"
    run = Run(
        folder, command, {}, run_id=run_id, clock=machine.clock, machine=machine, heartbeats=False
    )
    # One thread runs them all.
    run._lock = GreenletLock(world)  # pyrefly: ignore
    run._stop = GreenletEvent(machine.clock)  # pyrefly: ignore
    if newer:
        run.record = NewerRecord(**vars(run.record))
    return run


def start_heartbeats(machine: SimulatedMachine, run: Run) -> None:
    """The thread that renews a run's record."""
    machine.world.start("heartbeats", run._send_heartbeats, of=machine.world.current)


@dataclass
class Building:
    """`chiasm index build` in a simulated world: one segment of everything that is embedded.
    fails: after that was written. newer: a later version of chiasm does it.
    incomplete: whether a person has removed a file of it."""

    machine: SimulatedMachine
    folder: Folder
    settings: IndexSettings = field(default_factory=IndexSettings)
    fails: bool = False
    newer: bool = False
    incomplete: bool = False
    run: Run | None = None
    process: Process | None = None
    covered: dict[str, str] = field(default_factory=dict)  # shard id -> edition

    def __call__(self) -> None:
        world, clock, folder = self.machine.world, self.machine.clock, self.folder
        self.process = world.current
        self.run = new_run(self.machine, folder, "index build", newer=self.newer)
        with self.run as run:
            start_heartbeats(self.machine, run)
            with sweeping(run, self.settings):
                began_with = live_number(folder)
                covered = CoveredShards(Collection(folder, IDENTITY))
                if not covered.indexed:
                    return
                clock.sleep(world.rng.choice((0.1, 5.0)))
                self.covered = {id: one.edition for id, one in covered.indexed.items()}
                manifest = filled_segment(folder, run, tuple(covered.indexed.values()))
                if self.fails:
                    raise InjectedFailure
                publish(folder, manifest, run, began_with)
                sweep(folder, run, self.settings)
            run.finish("done", {})


class InjectedFailure(Exception):
    """What a build meets that is to fail."""


def filled_segment(folder: Folder, run: Run, shards: tuple[IndexedShard, ...]) -> Manifest:
    """Write one segment of these shards; returns the manifest of a generation of it."""
    segment_id, content = f"{run.id}-000", b"rows"
    rows = sum(shard.rows for shard in shards)
    folder.write_whole(segment_file(segment_id, "rows.arrow"), content, run.id)
    files = {"rows.arrow": FileSum.of(content)}
    content = SegmentRecord(segment_id, rows, 8, {}, shards, files).to_json()
    folder.write_whole(segment_file(segment_id, "segment.json"), content, run.id)
    entry = SegmentEntry(segment_id, rows, FileSum.of(content))
    return Manifest(run.id, 0.0, IDENTITY.encoder, IDENTITY.fingerprint, 8, {}, {}, (entry,))


@dataclass
class Searching:
    """A searcher in a simulated world: opens the index, answers for a while from what it opened or
    opened again since. answers: how often it could."""

    machine: SimulatedMachine
    folder: Folder
    rounds: int = 2
    answers: int = 0

    def __call__(self) -> None:
        world, clock = self.machine.world, self.machine.clock
        for _ in range(self.rounds):
            clock.sleep(world.rng.uniform(0, 30))
            generation = open_current(self.folder)
            if generation is None:
                continue
            index = OpenIndex(Collection(self.folder, IDENTITY), generation, EncoderSettings())
            for _ in range(2):
                clock.sleep(world.rng.uniform(0, 60))
                retrieving.retrieve([], index)
                self.answers += 1


def answer_from(queries: Sequence[object], index: OpenIndex) -> list[Any]:
    """Stands for `retrieve_from`: the files are read again for each answer."""
    for segment in index.segments:
        name = segment_file(segment.record.id, "rows.arrow")
        try:
            index.collection.folder.read_bytes(name)
        except StorageError as error:
            if index.collection.folder.exists(name):
                raise  # the store did not answer
            raise SegmentGone(name, found="no such file") from error
    return []

"""The loop that keeps workers busy, over actors that are simulated: no Ray is started."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from counting_store import CountingStore
from fake_encoder import FakeEncoder
from ray.exceptions import RayError
from test_runs import R1, R2, FakeClock
from test_worklist import SETTINGS, add_rows, commit, new_run, shards_of, work_of

from chiasm.jobs.cluster import pool
from chiasm.jobs.cluster.pool import REPORTS, Pool, Recipe
from chiasm.jobs.cluster.worker import Loaded, Report
from chiasm.jobs.config import WorkerSettings
from chiasm.pipeline.collection import Identity, Run
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.records import Shard
from chiasm.pipeline.tasks import Task
from chiasm.pipeline.worklist import WorkList

IDENTITY = Identity.of(FakeEncoder())


@dataclass(eq=False)
class Ref:
    """What a call will give: a value, or a function that is called once it is waited for."""

    value: Any
    ready: bool = True


@dataclass
class FakeRay:
    """Calls are answered when they are made; those of `embed` in order, one for each wait for
    which nothing else is ready. calls: of Ray, by name."""

    answer: Callable[[Any], Any]
    calls: Counter[str] = field(default_factory=Counter)
    killed: list[int] = field(default_factory=list)
    running: list[Ref] = field(default_factory=list)

    def remote(self, **options: Any):
        numbers = itertools.count()
        return lambda kind: SimpleNamespace(remote=lambda recipe: self.actor(next(numbers)))

    def actor(self, number: int):
        def embed(shard, limit) -> Ref:
            self.running.append(Ref(lambda: self.answer(shard), ready=False))
            return self.running[-1]

        def progress() -> Ref:
            self.calls["progress"] += 1
            return Ref(lambda: Report())

        load = lambda *precision: Ref(lambda: Loaded(IDENTITY, ()))  # noqa: E731
        methods = {"embed": embed, "progress": progress, "load": load}
        return SimpleNamespace(
            number=number,
            **{name: SimpleNamespace(remote=call) for name, call in methods.items()},
        )

    def wait(self, refs: list[Ref], num_returns: int = 1, timeout: float | None = None):
        self.calls["wait"] += 1
        if not any(ref.ready for ref in refs) and timeout:
            next(ref for ref in self.running if ref in refs).ready = True
        ready = [ref for ref in refs if ref.ready][:num_returns]
        self.running = [ref for ref in self.running if ref not in ready]
        return ready, [ref for ref in refs if ref not in ready]

    def get(self, ref: Ref) -> Any:
        self.calls["get"] += 1
        return ref.value()

    def kill(self, actor: Any) -> None:
        self.killed.append(actor.number)


@pytest.fixture
def clock(monkeypatch) -> FakeClock:
    """Half a second passes with every turn of the loop."""
    clock = FakeClock()
    monkeypatch.setattr(pool, "time", SimpleNamespace(monotonic=clock.monotonic, sleep=clock.sleep))
    return clock


def run_pool(
    monkeypatch,
    clock: FakeClock,
    shards: int,
    workers: int,
    *,
    tick=lambda *_: None,
    answer=None,
    store: CountingStore | None = None,
) -> tuple[FakeRay, Any]:
    store = store or CountingStore()
    folder = store.folder()
    ray = FakeRay(answer or (lambda shard: commit(store, Task(shard))))
    monkeypatch.setattr(pool, "ray", ray)
    with new_run(folder, R1, clock) as run:
        work = work_of(folder, shards_of(shards), run)
        recipe = Recipe.of_this_driver("fake", EncoderSettings(), folder.url, run.id, SETTINGS)

        def ticked(pool: Pool) -> None:
            clock.sleep(0.5)
            tick(pool, work)
            run.beat()

        settings = WorkerSettings(count=workers, gpus=1)
        Pool(recipe, settings, on_worker_ready=lambda i: i.precision, tick=ticked).run(work)
        run.finish("done", {})
    return ray, work


def test_workers_without_anything_left_to_do_are_ended_while_others_work(monkeypatch, clock):
    seen: list[tuple[int, int]] = []  # shards that are not done, workers that are there

    def tick(pool: Pool, work: WorkList) -> None:
        seen.append((12 - work.done.shards, len(pool.workers)))

    ray, work = run_pool(monkeypatch, clock, 12, 4, tick=tick)
    assert work.done.shards == 12
    assert max(workers for _, workers in seen) == 4
    last = [workers for shards, workers in seen if shards == 1]
    assert last and max(last) <= 2, "as many as had shards a turn before"
    assert sorted(ray.killed) == [0, 1, 2, 3]


def other_run(store: CountingStore, clock: FakeClock, shards: list[Shard]) -> Run:
    """A run of another machine that has claimed these shards."""
    run = new_run(store.folder(), R2, clock, "elsewhere").__enter__()
    run.claim(shard.id for shard in shards)
    return run


@pytest.mark.parametrize("ends", ["done", "killed"])
def test_workers_do_not_wait_for_shards_of_another_run(monkeypatch, clock, ends):
    """They are ended; when the other run is done none is hired, when it is dead all are."""
    store, shards = CountingStore(), shards_of(12)
    other = other_run(store, clock, shards[4:])
    seen: list[tuple[int, int]] = []  # shards that this run has done, workers that are there

    def tick(pool: Pool, work: WorkList) -> None:
        if ends == "done" or clock.now < 1030:
            other.beat()
        if ends == "done" and clock.now >= 1030 and other.record.claimed:
            for shard in shards[4:]:
                add_rows(store, shard)
            other.claim([])
        seen.append((work.done.shards, len(pool.workers)))

    ray, work = run_pool(monkeypatch, clock, 12, 4, tick=tick, store=store)
    assert (4, 0) in seen, "all that is left is another run's"
    hired = 1 + max(ray.killed)
    if ends == "done":
        assert (work.done.shards, work.skipped.shards, hired) == (4, 8, 4)
    else:
        assert (work.done.shards, work.skipped.shards, hired) == (12, 0, 8)


def test_a_worker_that_dies_leaves_its_next_shard_to_another(monkeypatch, clock):
    store, deaths = CountingStore(), []

    def answer(shard: Shard) -> tuple:
        if shard.id.startswith("3-") and len(deaths) < 2:
            deaths.append(shard.id)
            raise RayError("out of memory")
        return commit(store, Task(shard))

    _, work = run_pool(monkeypatch, clock, 20, 3, answer=answer)
    assert (work.done.shards, work.quarantined, len(deaths)) == (20, {}, 2)


def test_a_turn_asks_few_of_many_workers(monkeypatch, clock):
    """Reports are requested for in turn, and outcomes waited for all at once."""
    requested: list[int] = []
    ray, work = run_pool(
        monkeypatch, clock, 300, 150,
        tick=lambda *_: requested.append(pool.ray.calls["progress"] - len(pool.ray.killed)),
    )  # fmt: skip
    assert work.done.shards == 300
    grown = [later - earlier for earlier, later in itertools.pairwise(requested)]
    assert 0 < max(grown) <= REPORTS
    # Two waits for the outcomes of a turn, one for reports; and one for those that are ended.
    assert ray.calls["wait"] <= 3 * 302 + 150


def test_a_limit_keeps_one_worker(monkeypatch, clock):
    seen: list[int] = []
    store = CountingStore()
    folder = store.folder()
    monkeypatch.setattr(pool, "ray", FakeRay(lambda shard: commit(store, Task(shard))))
    with new_run(folder, R1, clock) as run:
        work = work_of(folder, shards_of(9), run, limit=25)
        recipe = Recipe.of_this_driver("fake", EncoderSettings(), folder.url, run.id, SETTINGS)

        def tick(pool: Pool) -> None:
            clock.sleep(0.5)
            seen.append(len(pool.workers))

        Pool(recipe, WorkerSettings(count=4), on_worker_ready=lambda i: i.precision, tick=tick).run(
            work
        )
        run.finish("done", {})
    assert max(seen) == 1 and work.done.shards == 3

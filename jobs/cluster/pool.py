"""A pool of Ray actors and the one loop that keeps them busy.

Shards go out, outcomes come in as they happen (`ray.wait`). Each worker holds two shards: the one
at work, and the next, so that it never waits for the driver. What befalls a worker is told apart
from what a shard did: only the shard at work when a worker dies, or passes its deadline, loses an
attempt. Workers are asked for up to a maximum and join as they are placed, so an autoscaler sees
the demand.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from chiasm.jobs.cluster.worker import EmbedWorker, Recipe
from chiasm.jobs.config import WorkerSettings
from chiasm.pipeline.collection import Identity
from chiasm.pipeline.errors import ChiasmError, EncoderError, SourceError, UnreachableError
from chiasm.pipeline.worklist import Task, WorkList

TICK_SECONDS = 0.5
LOADS = 3  # workers that may die while loading, one after the other, before the run gives up


@dataclass
class Worker:
    """An actor and what it holds, the shard at work first."""

    actor: ActorHandle[EmbedWorker]
    loading: ray.ObjectRef | None
    holds: deque[tuple[ray.ObjectRef, Task]] = field(default_factory=deque)
    told_precision: bool = False
    head_since: float = 0.0
    asked: ray.ObjectRef | None = None
    at_work: tuple[int, int] = (0, 0)  # samples, dropped


class Pool:
    """Runs a work list to its end.

    welcome: called with the identity of each worker's encoder before it is given a shard; may
    raise. tick: called about twice a second with the pool.
    """

    def __init__(
        self,
        recipe: Recipe,
        settings: WorkerSettings,
        *,
        welcome: Callable[[Identity], str],
        tick: Callable[[Pool], None],
    ) -> None:
        self.settings = settings
        self.workers: list[Worker] = []
        self._recipe, self._welcome, self._tick = recipe, welcome, tick
        self._lost_loading = 0
        options: dict[str, Any] = {
            "num_cpus": settings.cpus,
            "num_gpus": settings.gpus,
            "memory": int(settings.memory_gb * 2**30) or None,
            "max_restarts": 0,
            "concurrency_groups": {"control": 1},
        }
        self._kind: Any = ray.remote(**options)(EmbedWorker)

    @property
    def ready(self) -> int:
        """Workers that have their model in memory."""
        return sum(worker.loading is None for worker in self.workers)

    def at_work(self) -> tuple[int, int]:
        """Samples of the shards now at work, and how many were dropped, as last heard."""
        samples = sum(worker.at_work[0] for worker in self.workers)
        return samples, sum(worker.at_work[1] for worker in self.workers)

    def run(self, work: WorkList) -> None:
        """Work until nothing is left. Raises what `welcome` raises, and any error that would meet
        every shard: a model that cannot be loaded, a target that cannot be written."""
        try:
            while not work.over:
                self._hire(work)
                self._feed(work)
                self._settle_what_is_ready(work)
                self._end_overdue(work)
                self._hear_progress()
                self._tick(self)
        finally:
            for worker in self.workers:
                ray.kill(worker.actor)
            self.workers = []

    def _hire(self, work: WorkList) -> None:
        wanted = min(self.settings.count, work.left + sum(len(w.holds) > 0 for w in self.workers))
        while len(self.workers) < wanted:
            actor = self._kind.remote(self._recipe)
            self.workers.append(Worker(actor, actor.load.remote()))

    def _feed(self, work: WorkList) -> None:
        # One round for each shard a worker may hold: no worker gets its second before all have one.
        for held in range(self.settings.in_flight):
            for worker in self.workers:
                if worker.loading is None and len(worker.holds) == held:
                    task = work.take()
                    if task is None:
                        return
                    self._give(worker, task)

    def _give(self, worker: Worker, task: Task) -> None:
        if not worker.holds:
            worker.head_since = time.monotonic()
        ref = worker.actor.embed.remote(task.shard, task.limit)
        worker.holds.append((ref, task))

    def _settle_what_is_ready(self, work: WorkList) -> None:
        waiting = {worker.loading: worker for worker in self.workers if worker.loading is not None}
        waiting |= {worker.holds[0][0]: worker for worker in self.workers if worker.holds}
        if not waiting:
            time.sleep(TICK_SECONDS)
            return
        ready, _ = ray.wait(list(waiting), num_returns=1, timeout=TICK_SECONDS)
        for ref in ready:
            worker = waiting[ref]
            if ref == worker.loading:
                self._settle_load(worker, ref)
            else:
                self._settle_shard(worker, work)

    def _settle_load(self, worker: Worker, loaded: ray.ObjectRef) -> None:
        try:
            identity = ray.get(loaded)
        except RayTaskError as error:
            cause = _cause(error)
            if isinstance(cause, ChiasmError):
                raise cause from error
            raise EncoderError(
                f"encoder {self._recipe.encoder}",
                expected="a model that loads",
                found=f"{type(cause).__name__}: {_line(cause)}",
            ) from error
        except RayError as error:
            self._dismiss(worker)
            self._lost_loading += 1
            if self._lost_loading == LOADS:
                raise ChiasmError(
                    f"encoder {self._recipe.encoder}",
                    expected="a worker that loads it",
                    found=f"{LOADS} workers that died loading it ({_line(error)})",
                    do="give workers more memory, or choose a smaller model",
                ) from error
            return
        self._lost_loading = 0
        precision = self._welcome(identity)
        if identity.precision == precision or worker.told_precision:
            worker.loading = None
        else:
            worker.told_precision = True
            worker.loading = worker.actor.load.remote(precision)

    def _settle_shard(self, worker: Worker, work: WorkList) -> None:
        ref, task = worker.holds[0]
        try:
            entry = ray.get(ref)
        except RayTaskError as error:
            self._advance(worker)
            self._settle_failure(task, _cause(error), work)
        except RayError as error:
            self._lose(worker, f"its worker died: {_line(error)}", work)
        else:
            self._advance(worker)
            work.finish(task, entry)

    def _settle_failure(self, task: Task, cause: BaseException, work: WorkList) -> None:
        if isinstance(cause, UnreachableError):
            self._try_again(task, str(cause), work)  # its store may answer later
        elif isinstance(cause, SourceError):
            task.failures.append(str(cause))
            work.quarantine(task, str(cause))  # reading it again would find the same
        elif isinstance(cause, ChiasmError):
            raise cause
        else:
            self._try_again(task, f"{type(cause).__name__}: {_line(cause)}", work)

    def _try_again(self, task: Task, why: str, work: WorkList) -> None:
        if len(task.failures) + 1 < self.settings.attempts:
            work.requeue(task, why)
        else:
            task.failures.append(why)
            work.quarantine(task, f"{len(task.failures)} attempts failed, the last one: {why}")

    def _advance(self, worker: Worker) -> None:
        worker.holds.popleft()
        worker.head_since = time.monotonic()
        worker.at_work = (0, 0)

    def _lose(self, worker: Worker, why: str, work: WorkList) -> None:
        """A worker is gone: blame the shard at work, give the others back unblamed."""
        self._dismiss(worker)
        (_, head), *rest = worker.holds
        for _, task in reversed(rest):
            work.requeue(task)
        self._try_again(head, why, work)

    def _end_overdue(self, work: WorkList) -> None:
        deadline = self.settings.deadline_seconds
        for worker in list(self.workers):
            if deadline and worker.holds and time.monotonic() - worker.head_since > deadline:
                self._lose(worker, f"it passed its deadline of {deadline:g} s", work)

    def _dismiss(self, worker: Worker) -> None:
        self.workers.remove(worker)
        ray.kill(
            worker.actor
        )  # dead to us, but perhaps only out of reach: it must not go on writing

    def _hear_progress(self) -> None:
        """Pick up the answers that are there and ask again; never wait for one."""
        for worker in self.workers:
            if worker.asked is not None and ray.wait([worker.asked], timeout=0)[0]:
                try:
                    worker.at_work = ray.get(worker.asked)
                except RayError:
                    continue  # its shard's outcome tells the same, and is settled next
                worker.asked = None
            if worker.asked is None and worker.holds:
                worker.asked = worker.actor.progress.remote()


def _cause(error: RayTaskError) -> BaseException:
    return error.cause if isinstance(error.cause, BaseException) else error


def _line(error: BaseException) -> str:
    """The first telling line of an error's text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__

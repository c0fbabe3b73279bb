"""A pool of Ray actors and the one loop that keeps them busy.

Shards go out, outcomes come in as they happen (`ray.wait`). Each worker holds two shards: the one
at work, and the next, so that it never waits for the driver. A worker's failure is not a shard's:
only the shard at work when a worker dies, or passes its deadline, loses an attempt. Workers are
requested up to a maximum and join as they are placed, so an autoscaler sees the demand; one that
has nothing left to do is ended, and gives back what it reserved.

What a turn of the loop costs does not grow with the number of workers, but for one `ray.wait`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from chiasm.jobs.cluster.deaths import death_of
from chiasm.jobs.cluster.logs import relog
from chiasm.jobs.cluster.placement import PLACEMENT_SECONDS, require_placeable
from chiasm.jobs.cluster.worker import EmbedWorker, Recipe, Report
from chiasm.jobs.config import WorkerSettings
from chiasm.pipeline.attempts import first_line, record_failure, requeue_or_quarantine
from chiasm.pipeline.collection import Identity
from chiasm.pipeline.errors import ChiasmError, EncoderError
from chiasm.pipeline.tasks import Task
from chiasm.pipeline.worklist import WorkList

LOG = logging.getLogger(__name__)

TICK_SECONDS = 0.5
REPORTS = 64  # asked for in one tick, so that a thousand workers do not hold up the loop
LOADS = 3  # workers that may die while loading, one after the other, before the run gives up
IDLE_SECONDS = 5.0  # two runs that claim the same shards at once have settled it by then
LAST_LINES_SECONDS = 2.0  # a worker has for its last log lines when all is done


@dataclass(eq=False)
class Worker:
    """An actor and what it holds, the shard at work first."""

    actor: ActorHandle[EmbedWorker]
    loading: ray.ObjectRef | None
    assigned: deque[tuple[ray.ObjectRef, Task]] = field(default_factory=deque)
    precision_sent: bool = False
    head_since: float = 0.0
    ended: bool = False
    report: Report = field(default_factory=Report)

    def at_work(self) -> tuple[int, int]:
        """Samples and dropped of the shard at work, as last reported. A report of the shard before
        it, asked for while that was at work, does not count: its ledger entry does."""
        if not self.assigned or self.report.shard_id != self.assigned[0][1].shard.id:
            return 0, 0
        return self.report.samples, self.report.dropped


class Pool:
    """Runs a work list to its end.

    on_worker_ready: called with the identity of each worker's encoder before it is given a shard;
    returns the precision to use; may raise. tick: called about twice a second with the pool.
    """

    def __init__(
        self,
        recipe: Recipe,
        settings: WorkerSettings,
        *,
        on_worker_ready: Callable[[Identity], str],
        tick: Callable[[Pool], None],
    ) -> None:
        self.settings = settings
        self.workers: list[Worker] = []
        self._waiting: dict[ray.ObjectRef, Worker] = {}  # by the outcome that is due next
        self._hungry: dict[Worker, None] = {}  # they may hold another shard
        self._reports: dict[ray.ObjectRef, Worker] = {}
        self._to_report: deque[Worker] = deque()  # in the order in which they are asked
        self._ticked = -math.inf
        self._recipe, self._on_worker_ready, self._tick = recipe, on_worker_ready, tick
        self._lost_loading = 0
        self._began = self._had_free = time.monotonic()
        self._placeable = False  # not known yet
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
        """Samples of the shards now at work, and how many were dropped, as last reported."""
        counts = [worker.at_work() for worker in self.workers]
        return sum(samples for samples, _ in counts), sum(dropped for _, dropped in counts)

    def run(self, work: WorkList) -> None:
        """Work until nothing is left. Raises what `on_worker_ready` raises, and any error that
        would meet every shard: a model that cannot be loaded, a target that cannot be written."""
        try:
            while not work.over:
                self._hire_or_end(work)
                self._assign(work)
                self._collect_outcomes(work)
                if time.monotonic() - self._ticked >= TICK_SECONDS:
                    self._ticked = time.monotonic()
                    self._kill_overdue(work)
                    self._collect_reports()
                    self._check_placement()
                    self._tick(self)
            self._collect_last_lines(self.workers)
            self._tick(self)
        finally:
            for worker in self.workers:
                ray.kill(worker.actor)
            self.workers = []

    def _hire_or_end(self, work: WorkList) -> None:
        """As many workers as have a shard or could be given one. Shards that another run has
        claimed are none: idle workers do not wait for its end, but are hired again if it dies."""
        busy = sum(len(worker.assigned) > 0 for worker in self.workers)
        most = self.settings.count if work.limit is None else 1  # one shard after the other
        if work.fingerprint and len(self.workers) < most:
            work.claim_next()  # no worker is hired for what another run has finished
        if work.free:
            self._had_free = time.monotonic()
        wanted = min(most, work.free + busy)
        while len(self.workers) < wanted:
            actor = self._kind.remote(self._recipe)
            loading = actor.load.remote()
            worker = Worker(actor, loading)
            self.workers.append(worker)
            self._waiting[loading] = worker
        if time.monotonic() - self._had_free < IDLE_SECONDS:
            wanted = min(most, work.left + busy)
        surplus = len(self.workers) - wanted
        if surplus > 0:
            idle = [worker for worker in self.workers if not worker.assigned]
            idle.sort(key=lambda worker: worker.loading is None)  # those not yet placed first
            self._collect_last_lines(idle[:surplus])
            for worker in idle[:surplus]:
                LOG.info("ended a worker that has nothing left to do")
                self._remove(worker)

    def _assign(self, work: WorkList) -> None:
        # One round for each shard a worker may hold: no worker gets its second before all have one.
        for count in range(self.settings.in_flight):
            for worker in [w for w in self._hungry if len(w.assigned) == count]:
                task = work.take()
                if task is None:
                    return
                self._give(worker, task)

    def _give(self, worker: Worker, task: Task) -> None:
        ref = worker.actor.embed.remote(task.shard, task.limit)
        worker.assigned.append((ref, task))
        if len(worker.assigned) == 1:
            worker.head_since = time.monotonic()
            self._waiting[ref] = worker
        if len(worker.assigned) == self.settings.in_flight:
            del self._hungry[worker]

    def _collect_outcomes(self, work: WorkList) -> None:
        refs = list(self._waiting)
        if not refs:
            time.sleep(TICK_SECONDS)
            return
        ray.wait(refs, num_returns=1, timeout=TICK_SECONDS)
        ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        for ref in ready:
            worker = self._waiting.pop(ref)
            if ref == worker.loading:
                self._finish_load(worker, ref)
            else:
                self._finish_shard(worker, work)

    def _finish_load(self, worker: Worker, ref: ray.ObjectRef) -> None:
        try:
            loaded = ray.get(ref)
        except RayTaskError as error:
            cause = _cause(error)
            if isinstance(cause, ChiasmError):
                raise cause from error
            raise EncoderError(
                f"encoder {self._recipe.encoder}",
                expected="a model that loads",
                found=f"{type(cause).__name__}: {first_line(cause)}",
            ) from error
        except RayError as error:
            self._remove(worker)
            self._lost_loading += 1
            death = death_of(error)
            LOG.warning("lost a worker that was loading: %s", death.cause)
            if self._lost_loading == LOADS:
                raise ChiasmError(
                    f"encoder {self._recipe.encoder}",
                    expected="a worker that loads it",
                    found=f"{LOADS} workers that died loading it ({death.cause})",
                    do=death.advice,
                ) from error
            return
        self._lost_loading = 0
        relog(list(loaded.log_lines))
        identity = loaded.identity
        precision = self._on_worker_ready(identity)
        if identity.precision == precision or worker.precision_sent:
            worker.loading = None
            self._placeable = True
            self._hungry[worker] = None
            self._to_report.append(worker)
            LOG.info("worker ready: %s in %s", identity.encoder, precision)
        else:
            worker.precision_sent = True
            worker.loading = worker.actor.load.remote(precision)
            self._waiting[worker.loading] = worker

    def _finish_shard(self, worker: Worker, work: WorkList) -> None:
        ref, task = worker.assigned[0]
        try:
            entry, files = ray.get(ref)
        except RayTaskError as error:
            self._advance(worker)
            record_failure(work, task, _cause(error), self.settings.attempts)
        except RayError as error:
            self._lose(worker, f"its worker died: {death_of(error).cause}", work)
        else:
            self._advance(worker)
            work.finish(task, entry, files)

    def _advance(self, worker: Worker) -> None:
        worker.assigned.popleft()
        worker.head_since = time.monotonic()
        self._hungry[worker] = None
        if worker.assigned:
            self._waiting[worker.assigned[0][0]] = worker

    def _lose(self, worker: Worker, why: str, work: WorkList) -> None:
        """A worker is gone: the shard at work loses an attempt, the others do not."""
        self._remove(worker)
        (_, head), *rest = worker.assigned
        LOG.warning("lost a worker at %s: %s", head.shard.id, why, extra={"shard": head.shard.id})
        for _, task in reversed(rest):
            work.requeue(task)
        requeue_or_quarantine(work, head, why, self.settings.attempts)

    def _kill_overdue(self, work: WorkList) -> None:
        deadline = self.settings.deadline_seconds
        for worker in list(self.workers):
            if deadline and worker.assigned and time.monotonic() - worker.head_since > deadline:
                self._lose(worker, f"it passed its deadline of {deadline:g} s", work)

    def _remove(self, worker: Worker) -> None:
        self.workers.remove(worker)
        worker.ended = True
        self._hungry.pop(worker, None)
        self._waiting = {ref: w for ref, w in self._waiting.items() if w is not worker}
        # Perhaps it is only out of reach: it must not go on writing.
        ray.kill(worker.actor)

    def _collect_reports(self) -> None:
        """Take the reports that are there and ask the next workers in turn; never wait for one."""
        refs = list(self._reports)
        ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0) if refs else ([], refs)
        for ref in ready:
            worker = self._reports.pop(ref)
            # Where it died, the outcome of its shard says the same, and is collected next.
            with contextlib.suppress(RayError):
                worker.report = ray.get(ref)
                relog(list(worker.report.log_lines))
            if not worker.ended:
                self._to_report.append(worker)
        for _ in range(min(REPORTS, len(self._to_report))):
            worker = self._to_report.popleft()
            if not worker.ended:
                self._reports[worker.actor.progress.remote()] = worker

    def _collect_last_lines(self, workers: Sequence[Worker]) -> None:
        """What workers logged since their last report, before they are ended."""
        refs = [ref for ref, worker in self._reports.items() if worker in workers]
        refs += [worker.actor.progress.remote() for worker in workers if worker.loading is None]
        if not refs:
            return
        ready, _ = ray.wait(refs, num_returns=len(refs), timeout=LAST_LINES_SECONDS)
        for ref in ready:
            with contextlib.suppress(RayError):  # it died meanwhile; its work is done
                relog(list(ray.get(ref).log_lines))

    def _check_placement(self) -> None:
        """Raise ChiasmError where no worker was placed for a while and no node ever can hold one:
        Ray itself would wait for ever."""
        if self._placeable or time.monotonic() - self._began < PLACEMENT_SECONDS:
            return
        if self.workers:
            require_placeable(self.settings)
            self._placeable = True


def _cause(error: RayTaskError) -> BaseException:
    return error.cause if isinstance(error.cause, BaseException) else error

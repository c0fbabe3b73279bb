"""Method calls spread over Ray actors of one class, results as they come."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from chiasm.jobs.cluster.address import Address
from chiasm.jobs.cluster.deaths import death_of
from chiasm.jobs.cluster.placement import PLACEMENT_SECONDS, require_placeable
from chiasm.jobs.cluster.session import connected
from chiasm.jobs.config import WorkerSettings
from chiasm.jobs.signals import STOPPING
from chiasm.pipeline.attempts import first_line
from chiasm.pipeline.errors import ChiasmError

TICK_SECONDS = 0.5

Apply = Callable[[str, Sequence[tuple]], Iterator[Any]]


@contextmanager
def actor_pool(
    kind: type, arguments: tuple, count: int, workers: WorkerSettings, address: str | Address | None
) -> Iterator[Apply]:
    """`apply(method, argument_tuples)` on up to `count` actors `kind(*arguments)`.

    An actor takes part once its method `load` has returned, so that a cluster may place them one by
    one. Its methods must be safe to call again: an actor that dies is restarted, and its call
    repeated, `workers.attempts` times in all. Results come in any order."""
    with STOPPING.deferred(), connected(address, workers):
        options: dict[str, Any] = {
            "num_cpus": workers.cpus,
            "num_gpus": workers.gpus,
            "memory": int(workers.memory_gb * 2**30) or None,
            "max_restarts": workers.attempts - 1,
            "max_task_retries": workers.attempts - 1,
        }
        remote: Any = ray.remote(**options)(kind)
        actors = [remote.remote(*arguments) for _ in range(count)]
        loading = {actor.load.remote(): actor for actor in actors}
        try:
            yield _Pool(loading, workers).apply
        finally:
            for actor in actors:
                ray.kill(actor)


class _Pool:
    def __init__(self, loading: dict[Any, Any], workers: WorkerSettings) -> None:
        self.loading, self.workers = loading, workers
        self.idle: deque[Any] = deque()
        self.began, self.placed = time.monotonic(), False

    def apply(self, method: str, argument_tuples: Sequence[tuple]) -> Iterator[Any]:
        waiting, running = deque(argument_tuples), dict[Any, Any]()
        while waiting or running:
            STOPPING.check()
            while waiting and self.idle:
                actor = self.idle.popleft()
                running[getattr(actor, method).remote(*waiting.popleft())] = actor
            refs = [*self.loading, *running]
            ray.wait(refs, num_returns=1, timeout=TICK_SECONDS)
            ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
            for ref in ready:
                result = _result(ref)
                self.placed = True
                if ref in self.loading:
                    self.idle.append(self.loading.pop(ref))
                else:
                    self.idle.append(running.pop(ref))
                    yield result
            if not self.placed and time.monotonic() - self.began > PLACEMENT_SECONDS:
                require_placeable(self.workers)
                self.placed = True


def _result(ref: Any) -> Any:
    """The value, or the ChiasmError that the actor raised, or one that names the failure."""
    try:
        return ray.get(ref)
    except RayTaskError as error:
        if isinstance(error.cause, ChiasmError):
            raise error.cause from error
        raise ChiasmError(
            "a worker", expected="a result", found=first_line(error.cause or error)
        ) from error
    except RayError as error:
        death = death_of(error)
        raise ChiasmError(
            "a worker",
            expected="one that lives to the end of its shard",
            found=death.cause,
            do=death.advice,
        ) from error

"""What jobs over shards share: workers in this process or on Ray, and which folder is no target."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from chiasm.jobs.config import WorkerSettings
from chiasm.pipeline.collection import read_identity
from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.records import Shard
from chiasm.pipeline.storage import Folder, display_name

Report = Callable[[str], None]
Apply = Callable[[str, Sequence[tuple]], Iterator[Any]]


class ShardWork(Protocol):
    """What a worker is: its model is loaded by `load`; its other methods are called by name."""

    def load(self) -> object: ...


def is_on_ray(workers: WorkerSettings, address: str | None) -> bool:
    """Whether the settings ask for Ray: an address, or more than one worker."""
    return address is not None or workers.count > 1


def shard_workers(
    work: ShardWork,
    arguments: tuple,
    shards: int,
    workers: WorkerSettings,
    address: str | None,
) -> AbstractContextManager[Apply]:
    """`apply(method, argument_tuples)` of `work` in this process, or of actors that are made from
    its class and `arguments`, at most one a shard. Raises what loading the model here raises, or
    the Ray that does not answer."""
    if not is_on_ray(workers, address):
        work.load()
        return nullcontext(
            lambda method, argument_tuples: (
                getattr(work, method)(*arguments) for arguments in argument_tuples
            )
        )
    from chiasm.jobs.cluster import actor_pool, require_address

    count = min(workers.count, shards)
    return actor_pool(type(work), arguments, count, workers, require_address(address))


def require_other_folder(shards: Sequence[Shard], to: str) -> None:
    """UsageError where a shard is in the folder, as the next run would read what this one wrote,
    and for a collection."""
    if read_identity(Folder(to)) is not None:
        raise UsageError(
            f"--to {to}",
            expected="another folder than that of a collection",
            found="a collection",
            do="name another folder",
        )
    target = Folder(to).url.rstrip("/")
    for shard in shards:
        if shard.url.rpartition("/")[0] == target:
            raise UsageError(
                f"--to {to}",
                expected="another folder than that of the shards",
                found=f"{display_name(shard.url)} in it",
            )

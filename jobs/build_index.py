"""`chiasm index build` on a cluster: each worker fills one segment at a time.

The driver infers the types, plans and trains, then hands out segments; what travels are the tasks
and the checksums of what was written. Without `--address` the same build runs in this process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from chiasm.index import BuildSummary, IndexSettings, build_index
from chiasm.index.build import Filled, SegmentTask, fill_segment
from chiasm.jobs.cluster import actor_pool, require_address
from chiasm.jobs.config import WorkerSettings


class SegmentFiller:
    """Fills segments in a process of its own."""

    def load(self) -> None:
        """Called once before any segment; there is nothing to load."""

    def fill(self, task: SegmentTask) -> Filled:
        return fill_segment(task)


def build_on_cluster(
    path: str | Path,
    *,
    address: str | None,
    workers: WorkerSettings,
    columns: Sequence[str] | None = None,
    settings: IndexSettings | None = None,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    encoder: str | None = None,
) -> BuildSummary:
    """`build_index`, its segments filled by up to `workers.count` workers of the Ray at `address`.

    Raises ChiasmError as that does, and for a Ray that does not answer.
    """
    found = require_address(address)

    def fill(tasks: Sequence[SegmentTask], filling: Callable[[int], None]) -> Iterator[Filled]:
        if not tasks:
            return
        count = min(workers.count, len(tasks))
        with actor_pool(SegmentFiller, (), count, workers, found) as apply:
            yield from apply("fill", [(task,) for task in tasks])

    return build_index(
        path, columns=columns, settings=settings, progress=progress, fill=fill, encoder=encoder
    )

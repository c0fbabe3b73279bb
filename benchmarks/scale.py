"""What a driver costs at thousands of shards: requests, rounds and seconds, at 30 ms a request.

    python -m benchmarks.scale [--shards 10000] [--seconds 0.03]

The store is in memory and answers at once but for that wait. Workers are simulated: they write a
ledger entry and some bytes for a Parquet file. Run, work list, summaries and status are the
product's own. Prints the table of docs/results.md.
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from chiasm.jobs.status import status_of
from chiasm.pipeline.collection import (
    Collection,
    Identity,
    LedgerEntry,
    Run,
    create_or_check,
    ledger_name,
    parquet_name,
)
from chiasm.pipeline.editions import EmbedSettings, edition_of
from chiasm.pipeline.records import Dropped, Shard
from chiasm.pipeline.tasks import Task
from chiasm.pipeline.worklist import WorkList
from tests.support.counting_store import CountingStore
from tests.support.fake_encoder import FakeEncoder

SETTINGS = EmbedSettings()
ENCODER = FakeEncoder()
WORKERS, HELD = 64, 2
OURS = "*/pipeline/*"


def shards_of(count: int) -> list[Shard]:
    return [
        Shard(f"s3://bucket/tars/{n:06d}.tar", f"{n:06d}-{n:010x}", 1 << 30, f"{n:032x}")
        for n in range(count)
    ]


def commit(store: CountingStore, task: Task) -> tuple[LedgerEntry, tuple]:
    """What a worker does, without the driver's waiting for it."""
    shard = task.shard
    entry = LedgerEntry(
        shard,
        edition_of(shard, ENCODER.fingerprint, SETTINGS),
        rows=9_990,
        dropped=tuple(Dropped(f"{n:06d}", "decode", "corrupt", "a picture cut") for n in range(10)),
        seconds={"read": 1.0, "decode": 2.0, "encode image": 3.0},
        span=(0.0, 1.0),
    )
    paths = [f"bucket/c/{name}" for name in (ledger_name(shard.id), parquet_name(shard.id))]
    contents = (entry.to_json(), f"rows of {shard.id}".encode())
    for path, data in zip(paths, contents, strict=True):
        store.keep(path, data)
    return entry, tuple(CountingStore.stat_of(data) for data in contents)


def embed(store: CountingStore, shards: list[Shard]) -> WorkList:
    """A whole run of the driver, with simulated workers that hold two shards each."""
    (work,) = {id(work): work for work in embedding(store, shards, len(shards))}.values()
    return work


def embedding(store: CountingStore, shards: list[Shard], every: int) -> Iterator[WorkList]:
    """The same; pauses after every so many shards, and at the end."""
    folder = store.folder()
    with Run(folder, "embed", {}) as run:
        run.sweep(("", "runs", "ledger", "embeddings"))
        work = WorkList(shards, run, SETTINGS)
        work.skip_finished(create_or_check(folder, Identity.of(ENCODER), run.id))
        at_work: deque[Task] = deque()
        while not work.over:
            while len(at_work) < WORKERS * HELD and (task := work.take()) is not None:
                at_work.append(task)
            task = at_work.popleft()
            work.finish(task, *commit(store, task))
            if work.done.shards % every == 0:
                yield work
        run.sweep(("ledger", "embeddings"), own=True)
        work.write_summaries()
        run.finish("done", {})
    yield work


@contextmanager
def measured(store: CountingStore, what: str, shards: int, seconds: float) -> Iterator[None]:
    store.reset()
    store.seconds = seconds
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    store.seconds = 0.0
    print(
        f"| {what} | {store.total:,} | {store.rounds:,} | {wall:.1f} | {shards / wall:,.0f} "
        f"| {1000 * cpu / shards:.2f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=0.03)
    options = parser.parse_args()
    print("| | requests | rounds | seconds | shards/s | ms of CPU a shard |")
    print("|---|---|---|---|---|---|")
    store, shards, count = CountingStore(), shards_of(options.shards), options.shards
    with measured(store, f"{count:,} shards embedded by {WORKERS} workers", count, options.seconds):
        embed(store, shards)
    with measured(store, "the same command again", count, options.seconds):
        work = embed(store, shards)
    assert work.skipped.shards == count
    with measured(store, "status", count, options.seconds):
        found = status_of(Collection.of(store.folder(), "c"), "c")
    assert found.shards == count
    for count in (2_000, 20_000):
        store, shards = CountingStore(), shards_of(count)
        with measured(store, f"{count:,} shards, no wait", count, 0.0):
            embed(store, shards)
        print(f"{count:,} shards: {driver_memory(count):.1f} MB in the driver at most")


def driver_memory(count: int) -> float:
    """The most MB that the driver holds while it embeds so many shards, beside their names and the
    store."""
    most = 0.0
    store = CountingStore(forgets=("/ledger/", "/embeddings/"))
    shards = shards_of(count)
    tracemalloc.start()
    for _ in embedding(store, shards, every=count // 8):
        traced = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, OURS)])
        most = max(most, sum(trace.size for trace in traced.traces) / 1e6)
    tracemalloc.stop()
    return most


if __name__ == "__main__":
    main()

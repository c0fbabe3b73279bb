"""What a driver costs at thousands of shards: requests, rounds and seconds, at 30 ms a request.

    python -m benchmarks.scale [--shards 10000] [--seconds 0.03]

The store is in memory and answers at once but for that wait. Workers are simulated: they write a
ledger entry and some bytes for a Parquet file. Run, work list, summaries and status are the
product's own. Then an index with one row of each shard is opened and searched. Prints the table of
docs/results.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import os
import sys
import tempfile
import time
import tracemalloc
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from chiasm.index import IndexSettings, Query, Searcher, build_index, open_collection
from chiasm.index.segments import FileSum, IndexedShard, open_generation
from chiasm.index.segments.names import RECORD, manifest_name, segment_file
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
from chiasm.pipeline.storage.schemes import S3_STORE
from chiasm.pipeline.tasks import Task
from chiasm.pipeline.worklist import WorkList

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from counting_store import CountingStore
from fake_encoder import FakeEncoder
from tiny_collection import add_shard

SETTINGS = EmbedSettings()
ENCODER = FakeEncoder()
WORKERS, HELD = 64, 2


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


def add_index(store: CountingStore, shards: list[Shard], segments: int) -> None:
    """An index with one row of each shard: that of a small collection whose records are changed to
    name these shards."""
    S3_STORE.replace(store)
    folder, small, rows = store.folder(), store.folder("small"), len(shards) // segments
    create_or_check(small, Identity.of(ENCODER), "small")
    for number in range(segments):
        add_shard(small, f"s{number}", rows, dim=ENCODER.dims["image"], seed=number)
    build_index(small.url, settings=IndexSettings(segment_rows=rows))
    for path in [path for path in store.objects if path.startswith("bucket/small/index/")]:
        store.keep(path.replace("/small/", "/c/"), store.objects[path])
    generation = open_generation(folder, 1)
    entries = []
    for number, segment in enumerate(generation.segments):
        some = shards[number * rows : (number + 1) * rows]
        indexed = tuple(_indexed(store, shard) for shard in some)
        record = dataclasses.replace(segment.record, shards=indexed).to_json()
        folder.write_whole(segment_file(segment.record.id, RECORD), record)
        entry = generation.manifest.segments[number]
        entries.append(dataclasses.replace(entry, checksum=FileSum.of(record)))
    manifest = dataclasses.replace(generation.manifest, segments=tuple(entries))
    folder.write_whole(manifest_name(1), manifest.to_json())


def _indexed(store: CountingStore, shard: Shard) -> IndexedShard:
    data = store.objects[f"bucket/c/{parquet_name(shard.id)}"]
    edition = edition_of(shard, ENCODER.fingerprint, SETTINGS)
    stat = CountingStore.stat_of(data)
    return IndexedShard(shard.id, edition, shard.url, 1, stat.size, stat.version)


def search(index: Searcher) -> None:
    """One query with a vector: the files of a column and of the rows that it finds are opened."""
    (answer,) = index.search_many([Query(vector=np.ones(index.dim, np.float32), k=10)])
    assert len(answer.as_json()["results"]) == 10


def measure_index(store: CountingStore, shards: list[Shard], segments: int, wait: float) -> None:
    """Status, opening and the first search of these shards with an index."""
    count = len(shards)
    add_index(store, shards, segments)
    for shard in shards:
        store.keep(shard.url.removeprefix("s3://"), b"")  # status looks at some
    with measured(store, f"status with {segments} segments", count, wait):
        found = status_of(Collection.of(store.folder(), "c"), "c")
    assert (found.index.state, found.shards) == ("current", count)
    with measured(store, f"opening {segments} segments", count, wait):
        index = open_collection(store.folder().url)
    with measured(store, "the first search, without local copies", count, wait):
        search(index)
    with measured(store, "opening and the first search, with local copies", count, wait):
        search(open_collection(store.folder().url))


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
    parser.add_argument("--segments", type=int, default=8, help="of the index")
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
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        measure_index(store, shards, options.segments, options.seconds)
    for count in (2_000, 20_000):
        store, shards = CountingStore(), shards_of(count)
        with measured(store, f"{count:,} shards, no wait", count, 0.0):
            embed(store, shards)
        at_first, at_last, resuming = driver_memory(count)
        print(
            f"{count:,} shards: MB in the driver after a tenth {at_first:.2f}, after all"
            f" {at_last:.2f}, at the most while it looks which are done {resuming:.1f}"
        )


def driver_memory(count: int) -> tuple[float, float, float]:
    """MB that the driver holds beside its shards and the store: after a tenth of so many shards,
    after all of them, and at the most when the same command is given again."""
    shards = shards_of(count)
    store = CountingStore(forgets=("/ledger/", "/embeddings/"))
    tracemalloc.start()
    sizes = [_megabytes(store) for _ in embedding(store, shards, every=count // 10)]
    tracemalloc.stop()
    store = CountingStore()
    embed(store, shards)
    tracemalloc.start()
    embed(store, shards)
    resuming = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return sizes[0], sizes[-1], resuming


def _megabytes(store: CountingStore) -> float:
    gc.collect()
    return (tracemalloc.get_traced_memory()[0] - sum(map(len, store.objects.values()))) / 1e6


if __name__ == "__main__":
    main()

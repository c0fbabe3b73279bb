"""Filling one segment from whole shards: a task that may run in any process.

In come the shards' Parquet files, out goes a committed segment. Files are read once, some row
groups at a time and a few reads ahead, since reads of an object store mostly wait. A shard that is
embedded anew meanwhile is left out, and the segment begun again without it.
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TypeVar

import pyarrow as pa

from chiasm.index.build.covered import READ_BYTES, ReadFiles, ShardReplaced
from chiasm.index.build.memory import release_free
from chiasm.index.build.propose import stored_proposals
from chiasm.index.plan import Plan
from chiasm.index.segments import (
    IndexedShard,
    SchemaInference,
    SegmentEntry,
    SegmentWriter,
    SharedFile,
    Trained,
    read_shared,
)
from chiasm.pipeline.collection import EmbeddingFile, Footer, token_column
from chiasm.pipeline.storage import Folder, display_name

LOG = logging.getLogger(__name__)
T = TypeVar("T")
READS_AHEAD = 3  # at 60 ms a request and some 10 MB a read, the writer hardly waits


@dataclass(frozen=True)
class SegmentTask:
    """One segment to fill; plain data. url: of the collection. shards, footers: of the files, in
    order. plans, shared: of each column its index, and the file of what its segments share. tokens:
    the width of a token's vector, of columns that have tokens."""

    url: str
    segment_id: str
    run_id: str
    shards: tuple[IndexedShard, ...]
    footers: tuple[Footer, ...]
    schema: SchemaInference
    copied: tuple[str, ...]
    plans: Mapping[str, Plan]
    shared: Mapping[str, SharedFile]
    dim: int
    batch_bytes: int
    tokens: Mapping[str, int] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    def without(self, shard_id: str) -> SegmentTask:
        pairs = zip(self.shards, self.footers, strict=True)
        left = [pair for pair in pairs if pair[0].shard != shard_id]
        return replace(
            self, shards=tuple(one for one, _ in left), footers=tuple(two for _, two in left)
        )


@dataclass(frozen=True)
class Filled:
    """What a task made: the segment, None where no rows were left, how many vectors its columns
    have, and the shards that were replaced meanwhile."""

    entry: SegmentEntry | None
    vectors: dict[str, int]
    replaced: tuple[str, ...] = ()


def groups(files: Iterable[EmbeddingFile], most: int) -> Iterator[list[EmbeddingFile]]:
    """Whole shards, in order, for one segment each of `most` rows, or of one shard."""
    group: list[EmbeddingFile] = []
    rows = 0
    for file in files:
        if rows and file.rows and rows + file.rows > most:
            yield group
            group, rows = [], 0
        group.append(file)
        rows += file.rows
    if group:
        yield group


def fill_segment(
    task: SegmentTask,
    folder: Folder | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> Filled:
    """Write the segment. folder: the collection, None to open it by its URL. progress: called with
    the rows done so far; they may fall where a shard was replaced."""
    folder = folder or Folder(task.url)
    replaced: list[str] = []
    while task.shards:
        try:
            made = _fill(task, folder, progress)
            return replace(made, replaced=tuple(replaced))
        except ShardReplaced as found:
            LOG.info("shard %s was embedded anew while it was indexed", found.file.shard_id)
            replaced.append(found.file.shard_id)
            task = task.without(found.file.shard_id)
    return Filled(None, {}, tuple(replaced))


def _fill(task: SegmentTask, folder: Folder, progress: Callable[[int], None]) -> Filled:
    files = ReadFiles(folder, {shard.shard: shard for shard in task.shards})
    with SegmentWriter(
        folder,
        task.segment_id,
        task.run_id,
        shards=task.shards,
        schema=task.schema,
        copied=task.copied,
        plans=task.plans,
        trained={column: trained_of(task, folder, column) for column in task.plans},
        dim=task.dim,
        batch_bytes=task.batch_bytes,
        capacity=task.rows,
        tokens={
            column: (width, stored_proposals(folder, task.shared, column, task.dim))
            for column, width in task.tokens.items()
        },
    ) as segment:
        columns = [*task.copied, "json", *task.plans, *map(token_column, task.tokens)]
        for number, first, rows in read_ahead(files, folder, task.footers, columns):
            segment.add(number, first, rows)
            release_free()
            progress(segment.rows)
        files.require_same(EmbeddingFile(folder, footer) for footer in task.footers)
        if not segment.rows:
            return Filled(None, {})
        record, checksum = segment.commit()
    release_free()
    LOG.info("filled segment %s: %d rows of %d shards", record.id, record.rows, len(task.shards))
    return Filled(SegmentEntry(record.id, record.rows, checksum), dict(record.vectors))


def read_ahead(
    files: ReadFiles, folder: Folder, footers: Sequence[Footer], columns: list[str]
) -> Iterator[tuple[int, int, pa.Table]]:
    """The rows of each file, some row groups at a time: the file's number, the number of the first
    row in it, and the rows. Raises ShardReplaced where a file that is opened is not the one that
    was listed."""
    with ThreadPoolExecutor(READS_AHEAD + 1) as readers:
        opened = _ahead(
            (
                readers.submit(files.open, EmbeddingFile(folder, footer), columns, READ_BYTES)
                for footer in footers
            ),
            READS_AHEAD,
        )
        reads = (
            (number, first, readers.submit(files.read, file, columns, groups))
            for number, future in enumerate(opened)
            for file, first, groups in future.result().reads()
        )
        for number, first, future in _ahead(reads, READS_AHEAD):
            yield number, first, future.result()


def _ahead(items: Iterator[T], count: int) -> Iterator[T]:
    """The same items, `count` of them taken from the iterator before they are needed."""
    waiting = deque(itertools.islice(items, count + 1))
    while waiting:
        yield waiting.popleft()
        waiting.extend(itertools.islice(items, 1))


def trained_of(task: SegmentTask, folder: Folder, column: str) -> Trained | None:
    """What the segments of a column share; None where it is exact."""
    plan = task.plans[column]
    if plan.exact:
        return None
    return _read_trained(folder, task.shared[column], plan, task.dim)


def _read_trained(folder: Folder, entry: SharedFile, plan: Plan, dim: int) -> Trained:
    content = read_shared(folder, entry.file, entry.checksum)
    return Trained.from_bytes(content, plan, dim, display_name(folder.url_of(entry.file)), "")

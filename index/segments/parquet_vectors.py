"""Vectors that an index has no copy of, from the Parquet files that it was built from.

What is read is compared with its digest: a file that was written anew with other vectors is
noticed, whatever its size and times are, and one with the same vectors serves. Groups that were
read stay in memory, up to CACHED_BYTES for all indexes of the process, the last used ones.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from chiasm.index.segments.advice import build_command
from chiasm.index.segments.catalog import IndexedShard
from chiasm.index.segments.partial import AT_ONCE, SegmentGone
from chiasm.index.segments.source_file import DIGEST, GROUP, digests_of, group_count
from chiasm.index.segments.vector_files import Rows, as_float32
from chiasm.pipeline.collection import (
    EmbeddingFile,
    read_metadata,
    stored_parquet_name,
    vectors_of,
)
from chiasm.pipeline.errors import CollectionError, SourceError, StorageError
from chiasm.pipeline.storage import Folder, display_name

# Of groups in memory: half a million rows of 256 dimensions. A search beyond it reads some 128 KB
# for each candidate.
CACHED_BYTES = 256 << 20
METADATA = 8  # bytes of a Parquet file's metadata in memory, for each of its bytes; a guess
READ_GROUPS = 64  # of a request: 8 MiB of 256 dimensions


class Cache:
    """Values by key, the last used ones of `limit` bytes. Safe to share."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0
        self._lock = threading.Lock()
        self._locks: dict[object, threading.Lock] = {}  # by key, of those that are made in turn
        self._values: OrderedDict[object, tuple[Any, int]] = OrderedDict()

    def get(self, key: object) -> Any:
        """None where there is none."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def put(self, key: object, value: Any, size: int) -> None:
        with self._lock:
            self.used += size - self._values.pop(key, (None, 0))[1]
            self._values[key] = value, size
            while self.used > self.limit and len(self._values) > 1:
                self.used -= self._values.popitem(last=False)[1][1]

    @contextmanager
    def making(self, key: object) -> Iterator[None]:
        """Of several threads that make the same value the others wait for the first."""
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            yield

    def __contains__(self, key: object) -> bool:
        return key in self._values


_cache = Cache(CACHED_BYTES)


class ParquetVectors:
    """The vectors of a column of a segment, from the files of its shards. Safe to share. content:
    of COLUMN.source.

    `take` raises SegmentGone where a file has not the vectors any more that the segment was built
    from: a later generation may know the file as it is. It raises CollectionError and StorageError
    for a damaged file and one that cannot be read.

    Several segments' groups are requested in one round by `fetch`, as those of a copy are:
    `folder`, `requests`, `read` and `verify_more` are for it.
    """

    def __init__(
        self,
        folder: Folder,
        segment_id: str,
        column: str,
        shards: Sequence[IndexedShard],
        dim: int,
        content: bytes,
    ) -> None:
        self.folder, self.dim = folder, dim
        self._segment_id, self._column, self._shards = segment_id, column, shards
        counts = [shard.rows for shard in shards]
        groups = [group_count(shard) for shard in shards]
        self._first_rows = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self._first_groups = np.concatenate([[0], np.cumsum(groups)]).astype(np.int64)
        bits = np.frombuffer(content, np.uint8)
        self._has = np.unpackbits(bits, bitorder="little")[: sum(counts)].astype(bool)
        self._numbers: dict[int, np.ndarray] = {}  # of a shard's rows in its file, not 0, 1, ...
        place = (sum(counts) + 7) // 8
        for number, shard in enumerate(shards):
            if shard.removed:
                kept = np.unpackbits(bits[place:], bitorder="little", count=shard.file_rows)
                self._numbers[number] = np.flatnonzero(kept)
                place += (shard.file_rows + 7) // 8
        self._digests = np.frombuffer(content, f"V{DIGEST}", int(self._first_groups[-1]), place)

    def __len__(self) -> int:
        return len(self._has)

    def present(self) -> np.ndarray:
        return self._has

    def take(self, rows: Rows) -> np.ndarray:
        rows = np.arange(len(self))[rows] if isinstance(rows, slice) else np.asarray(rows)
        groups, places = self._places(rows)
        order = np.argsort(groups, kind="stable")
        wanted, starts = np.unique(groups[order], return_index=True)
        vectors = np.empty((len(rows), self.dim), np.float16)
        read, ends = self._groups(wanted), [*starts.tolist(), len(rows)]
        for number, first, end in zip(wanted.tolist(), ends, ends[1:], strict=False):
            some = order[first:end]
            vectors[some] = read[number][places[some]]
        return as_float32(vectors)

    def groups_of(self, rows: np.ndarray) -> np.ndarray:
        """The groups that have these rows, (n,) int64."""
        return self._places(rows)[0]

    def digests_of(self, shard: int) -> bytes:
        """Of all groups of the file of the shard at this place, one after the other."""
        return self._digests[self._first_groups[shard] : self._first_groups[shard + 1]].tobytes()

    def _places(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The group of each row, and its place in the group."""
        shards = np.searchsorted(self._first_rows, rows, side="right") - 1
        numbers = rows - self._first_rows[shards]
        for shard, of_file in self._numbers.items():
            here = shards == shard
            numbers[here] = of_file[numbers[here]]
        return self._first_groups[shards] + numbers // GROUP, numbers % GROUP

    def missing(self, numbers: np.ndarray) -> np.ndarray:
        """Of these groups those that are not in memory: sorted, each once."""
        wanted = np.unique(numbers)
        return wanted[[self._key(number) not in _cache for number in wanted.tolist()]]

    def requests(self, numbers: np.ndarray) -> list[tuple[int, int]]:
        """What to read for groups: the first and the last one of each reading."""
        return self.reads(self.missing(numbers))

    def verify_more(self, size: int) -> None:
        """All that is read is verified."""

    def reads(self, numbers: np.ndarray) -> list[tuple[int, int]]:
        """What to read for sorted groups: the first and the last one of each reading, all of one
        file."""
        reads: list[tuple[int, int]] = []
        for number in numbers.tolist():
            first, last = reads[-1] if reads else (number, -1)
            follows = number == last + 1 and number - first < READ_GROUPS
            if follows and self._shard_of(number) == self._shard_of(last):
                reads[-1] = first, number
            else:
                reads.append((number, number))
        return reads

    def read(self, first: int, last: int) -> None:
        """Read the groups `first` to `last`, all of one file, verify and keep them."""
        self._read(first, last)

    def _groups(self, wanted: np.ndarray) -> dict[int, np.ndarray]:
        """These groups, sorted, each once: by number, (n, dim) float16."""
        found = {number: _cache.get(self._key(number)) for number in wanted.tolist()}
        absent = [number for number, vectors in found.items() if vectors is None]
        reads = self.reads(np.array(absent, np.int64))
        for read in self.folder.map_concurrent(lambda one: self._read(*one), reads, AT_ONCE):
            found |= read
        return found

    def _read(self, first: int, last: int) -> dict[int, np.ndarray]:
        shard = self._shard_of(first)
        start = first - int(self._first_groups[shard])
        rows = range(start * GROUP, (start + last - first + 1) * GROUP)
        vectors = self._vectors_of(self._shards[shard], rows)
        if not self._are_right(first, last, vectors):  # written anew since its footer was read
            vectors = self._vectors_of(self._shards[shard], rows, anew=True)
            if not self._are_right(first, last, vectors):
                found = "none" if vectors is None else "others"
                raise self._changed(self._shards[shard].shard, found)
        assert vectors is not None
        read: dict[int, np.ndarray] = {}
        for number in range(first, last + 1):
            group = vectors[(number - first) * GROUP :][:GROUP].copy()
            _cache.put(self._key(number), group, group.nbytes)
            read[number] = group
        return read

    def _are_right(self, first: int, last: int, vectors: np.ndarray | None) -> bool:
        if vectors is None:
            return False
        return digests_of(vectors) == self._digests[first : last + 1].tobytes()

    def _vectors_of(
        self, shard: IndexedShard, rows: range, *, anew: bool = False
    ) -> np.ndarray | None:
        """The vectors (n, D) float16 of these rows of a shard's file as it is now, fewer at its
        end; None where it has no such column, or is not there. anew: read its footer again; else a
        damaged file may be one that has changed since."""
        try:
            file, metadata = _opened(self.folder, shard.shard, anew)
            return _read_rows(file, metadata, self._column, rows)
        except (CollectionError, SourceError, StorageError):
            name = stored_parquet_name(self.folder, shard.shard)
            if anew and self.folder.stat(name) is not None:
                raise
            return None

    def _key(self, number: int) -> tuple[str, str, str, int]:
        return self.folder.url, self._segment_id, self._column, number

    def _shard_of(self, group: int) -> int:
        return int(np.searchsorted(self._first_groups, group, side="right")) - 1

    def _changed(self, shard_id: str, found: str) -> SegmentGone:
        return SegmentGone(
            display_name(self.folder.url_of(stored_parquet_name(self.folder, shard_id))),
            expected=f"the {self._column} vectors that the index was built from and has no copy of",
            found=found,
            do=f"run {build_command(self.folder)}",
        )


def _opened(folder: Folder, shard_id: str, anew: bool) -> tuple[EmbeddingFile, pq.FileMetaData]:
    """A shard's file and what its footer says."""
    key = folder.url, shard_id
    with _cache.making(key):
        found = None if anew else _cache.get(key)
        if found is None:
            found = read_metadata(folder, shard_id)
            _cache.put(key, found, METADATA * found[1].serialized_size)
        return found


def _read_rows(
    file: EmbeddingFile, metadata: pq.FileMetaData, column: str, rows: range
) -> np.ndarray | None:
    counts = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    ends = np.cumsum(counts)
    first, last = np.searchsorted(ends, [rows.start, rows.stop - 1], side="right").tolist()
    last = min(last, len(counts) - 1)
    if first > last or column not in metadata.schema.to_arrow_schema().names:
        return None
    table = file.read_groups([column], range(first, last + 1), metadata)
    before = int(ends[first]) - counts[first]
    return vectors_of(table[column].slice(rows.start - before, len(rows)))[0]

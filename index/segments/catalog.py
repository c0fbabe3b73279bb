"""The catalog: key, captions, metadata and members of each position, as one memory-mapped Arrow
file.

Parquet rows of whole shards come in, in order; `rows.arrow` goes out: Arrow IPC without
compression, so that reading a row touches a page or two. A record batch has `BATCH` rows, or fewer
where they are large; a position's batch is found by the sums of their numbers of rows. A distant
reader requests single batches (`CatalogParts`). A row has all that a preview needs: the shard's
URL, and offset and size of the picture and of each other modality's member in it. The cost is disk:
text is not compressed.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from chiasm.index.plan import Count
from chiasm.index.results import CatalogRow
from chiasm.index.segments.blocks import CatalogBlocks
from chiasm.index.segments.catalog_rows import modalities_of, read_rows
from chiasm.index.segments.json_columns import SchemaInference
from chiasm.index.segments.partial import Parts, fetch
from chiasm.pipeline.collection import MEMBER_FIELDS, member_prefixes
from chiasm.pipeline.errors import CollectionError

# Rows of a record batch. A distant reader of a row reads its batch, some 20 KB; half as many rows
# would take 5 % more disk and twice as many checksums.
BATCH = 64
WRITTEN_AT_ONCE = 4096  # rows
MAGIC = b"ARROW1\0\0"  # an Arrow file's first bytes; a stream follows, and then a footer


def copied_columns(columns: Iterable[str]) -> list[str]:
    """What is copied unchanged from a shard's Parquet file, for a collection of these vector
    columns: the members of all its modalities, the picture's first."""
    prefixes = member_prefixes(columns).values()
    members = [f"{prefix}{name}" for prefix in prefixes for name in MEMBER_FIELDS]
    return ["key", "caption", "captions", "width", "height", *members]


@dataclass(frozen=True, slots=True)
class IndexedShard:
    """A shard's Parquet file as it was when it was indexed: `rows` of it under `edition`, made from
    the shard at `url`; the file itself had `size` bytes and the store's `version`. removed: more
    rows of it, which were deleted and which a compaction has then left out."""

    shard: str
    edition: str
    url: str
    rows: Count
    size: int
    version: str
    removed: Count = 0

    @property
    def file_rows(self) -> int:
        """The rows of the file."""
        return self.rows + self.removed

    @property
    def file(self) -> tuple[int, str]:
        return self.size, self.version


class WritableFile(Protocol):
    """An open file to write to, as pyarrow needs it."""

    closed: bool

    def write(self, data: Any, /) -> int: ...
    def flush(self) -> None: ...
    def tell(self) -> int: ...


class CatalogWriter:
    """Writes `rows.arrow` to an open file. Rows come shard by shard, in the order of `shards`;
    `copied` are the `copied_columns` of the collection. batch_bytes: of rows that wait for each
    other in memory; a single row may be larger."""

    def __init__(
        self,
        file: WritableFile,
        shards: Sequence[IndexedShard],
        schema: SchemaInference,
        copied: Sequence[str],
        batch_bytes: int,
    ) -> None:
        self._schema, self._copied, self._batch_bytes = schema, list(copied), batch_bytes
        self._names = {
            "shard": pa.array([shard.shard for shard in shards], pa.string()),
            "edition": pa.array([shard.edition for shard in shards], pa.string()),
            "url": pa.array([shard.url for shard in shards], pa.string()),
        }
        self.blocks = CatalogBlocks(file)
        self._file = pa.PythonFile(self.blocks, mode="w")
        self._ipc: pa.RecordBatchFileWriter | None = None
        self._pending: list[pa.Table] = []
        self._pending_rows = self._pending_bytes = 0

    def add(self, shard: int, first: int, rows: pa.Table) -> None:
        """Take consecutive rows of the shard at `shards[shard]`, the first being its row `first`.
        `rows` has the copied columns and `json`."""
        table = rows.select(self._copied)
        table = table.append_column("meta", self._schema.column(rows["json"].to_pylist()))
        row_numbers = np.arange(first, first + len(table), dtype=np.int32)
        self._take(shard, table.append_column("row", pa.array(row_numbers)))

    def copy(self, shard: int, rows: pa.Table) -> None:
        """Take rows of another catalog, of the shard at `shards[shard]`, in their order there.
        `rows` has the copied columns, `meta` and `row`."""
        self._take(shard, rows.select([*self._copied, "meta", "row"]))

    def _take(self, shard: int, table: pa.Table) -> None:
        table = table.append_column("code", pa.array(np.full(len(table), shard, dtype=np.int32)))
        self._pending.append(table)
        self._pending_rows += len(table)
        self._pending_bytes += table.nbytes
        if self._pending_bytes >= self._batch_bytes:
            self._flush(1)
        elif self._pending_rows >= WRITTEN_AT_ONCE:
            self._flush(BATCH)

    def close(self) -> None:
        """Write what is left and the footer; the file itself stays open."""
        self._flush(1)
        if self._ipc is not None:
            self._ipc.close()
        self.blocks.cut(0)

    def _flush(self, multiple: int) -> None:
        """Write all rows that wait but the last few beyond a multiple of so many."""
        if not self._pending:
            return
        table = pa.concat_tables(self._pending)
        complete = len(table) // multiple * multiple
        for start in range(0, complete, WRITTEN_AT_ONCE):
            self._write(table.slice(start, min(WRITTEN_AT_ONCE, complete - start)))
        rest = table.slice(complete)
        self._pending = [rest] if len(rest) else []
        self._pending_rows, self._pending_bytes = len(rest), rest.nbytes

    def _write(self, table: pa.Table) -> None:
        """Write rows in batches, by halves where they are large."""
        if len(table) > 1 and table.nbytes > self._batch_bytes:
            middle = len(table) // 2
            self._write(table.slice(0, middle))
            self._write(table.slice(middle))
            return
        table = table.combine_chunks()
        # An Arrow file has one dictionary for each column: every batch gets all names of the
        # segment.
        codes = table["code"].combine_chunks()
        for name, names in self._names.items():
            table = table.append_column(name, pa.DictionaryArray.from_arrays(codes, names))
        table = table.drop_columns("code")
        for batch in table.combine_chunks().to_batches(max_chunksize=BATCH):
            if self._ipc is None:
                self._ipc = pa.ipc.new_file(self._file, table.schema)
                self._ipc.write_batch(batch)
                self.blocks.cut(0, _head_size(self.blocks.block))
            else:
                self._ipc.write_batch(batch)
            self.blocks.cut(len(batch))


def _head_size(data: bytes) -> int:
    """Bytes of an Arrow file before its first record batch: magic, schema and dictionaries."""
    source = pa.BufferReader(data)
    source.seek(len(MAGIC))
    while True:
        size = source.tell()
        if pa.ipc.read_message(source).type == "record batch":
            return size


class CatalogParts:
    """A `rows.arrow` of which parts are here."""

    def __init__(self, copy: Parts) -> None:
        self.copy = copy
        assert copy.blocks.rows is not None
        self._ends = np.cumsum(copy.blocks.rows)  # of each block, exclusive
        self._firsts = self._ends - copy.blocks.rows

    def blocks_of(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        """The blocks that hold these rows, and the first."""
        return np.append(np.searchsorted(self._ends, numbers, side="right"), 0)

    def rows(self, positions: Iterable[int]) -> dict[int, CatalogRow]:
        """The rows at positions of this segment."""
        wanted = np.unique(np.fromiter(positions, dtype=np.int64))
        blocks = np.searchsorted(self._ends, wanted, side="right")
        fetch([(self.copy, np.append(blocks, 0))])
        numbers, which = np.unique(blocks, return_inverse=True)
        # As a stream: those of a file are the same messages, after its magic.
        head = self.copy.fetched(0, 0)[len(MAGIC) :]
        stream = b"".join([head, *(self.copy.fetched(number, number) for number in numbers)])
        batches = list(pa.ipc.open_stream(stream))
        places = wanted - self._firsts[blocks]
        rows = read_rows([batches[number] for number in which], places)
        return dict(zip(wanted.tolist(), rows, strict=True))


class Catalog:
    """A segment's `rows.arrow`, memory-mapped. `len` is the number of rows; safe to share."""

    def __init__(self, file: BufferedReader, where: str, rebuild: str, rows: int) -> None:
        """file: open; it may be closed afterwards. where, rebuild: its name, and the command that
        errors advise. rows: how many the segment has."""
        try:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(mapped)))
        except (pa.ArrowInvalid, OSError, ValueError) as error:
            raise CollectionError(
                where,
                expected="a segment's catalog",
                found=str(error).splitlines()[0],
                do=f"run {rebuild}",
            ) from error
        self._ends = np.cumsum(self._batch_rows(rows), dtype=np.int64)  # of each batch, exclusive

    def _batch_rows(self, rows: int) -> list[int]:
        """How many rows each batch has. Where all but the last must have BATCH, they are not looked
        at: each costs some microseconds."""
        last = self._reader.num_record_batches - 1
        if last < 0:
            return []
        rest = self._reader.get_batch(last).num_rows
        if last * BATCH + rest == rows:
            return [BATCH] * last + [rest]
        return [self._reader.get_batch(number).num_rows for number in range(last)] + [rest]

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def schema(self) -> pa.Schema:
        return self._reader.schema

    @property
    def modalities(self) -> list[str]:
        """The modalities beyond pictures and texts whose members are in the catalog. Empty for a
        catalog written before they were copied."""
        return modalities_of(self._reader.schema)

    def table(self) -> pa.Table:
        """All rows, still in the mapped file."""
        return self._reader.read_all()

    def row_numbers(self, rows: slice) -> np.ndarray:
        """The numbers that these rows of the segment have in their shards: int32."""
        return self.table()["row"].slice(rows.start, rows.stop - rows.start).to_numpy()

    def column(self, name: str) -> Iterator[Any]:
        """The cells of one column, row after row; one batch in memory at a time."""
        for number in range(self._reader.num_record_batches):
            yield from self._reader.get_batch(number).column(name).to_pylist()

    def rows(self, positions: Iterable[int]) -> dict[int, CatalogRow]:
        """The rows at positions of this segment, each read once."""
        wanted = np.unique(np.fromiter(positions, dtype=np.int64))
        batches = np.searchsorted(self._ends, wanted, side="right")
        opened = {int(number): self._reader.get_batch(number) for number in np.unique(batches)}
        firsts = self._ends[batches] - [opened[number].num_rows for number in batches.tolist()]
        rows = read_rows([opened[number] for number in batches.tolist()], wanted - firsts)
        return dict(zip(wanted.tolist(), rows, strict=True))

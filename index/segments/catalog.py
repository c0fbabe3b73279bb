"""The catalog: key, captions, metadata and members of each position, as one memory-mapped Arrow
file.

Parquet rows of whole shards come in, in order; `rows.arrow` goes out: Arrow IPC without
compression, so that reading a row touches a page or two. A record batch has `BATCH` rows, or fewer
where they are large; a position's batch is found by the sums of their numbers of rows. A row has
all that a preview needs: the shard's URL, and offset and size of the picture and of each other
modality's member in it. The cost is disk: text is not compressed.
"""

from __future__ import annotations

import json
import math
import mmap
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from chiasm.index.plan import Count
from chiasm.index.results import CatalogRow, row_id
from chiasm.index.segments.json_columns import SchemaInference
from chiasm.pipeline.collection import MEMBER_FIELDS, member_prefixes
from chiasm.pipeline.errors import CollectionError
from chiasm.pipeline.records import IMAGE, Origin, Place

BATCH = 4096  # rows of a record batch


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
        self._file = pa.PythonFile(file, mode="w")
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
        elif self._pending_rows >= BATCH:
            self._flush(BATCH)

    def close(self) -> None:
        """Write what is left and the footer; the file itself stays open."""
        self._flush(1)
        if self._ipc is not None:
            self._ipc.close()

    def _flush(self, multiple: int) -> None:
        """Write all rows that wait but the last few beyond a multiple of so many."""
        if not self._pending:
            return
        table = pa.concat_tables(self._pending)
        complete = len(table) // multiple * multiple
        for start in range(0, complete, BATCH):
            self._write(table.slice(start, min(BATCH, complete - start)))
        rest = table.slice(complete)
        self._pending = [rest] if len(rest) else []
        self._pending_rows, self._pending_bytes = len(rest), rest.nbytes

    def _write(self, table: pa.Table) -> None:
        """Write rows as one batch, or by halves as several that are small enough."""
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
        if self._ipc is None:
            self._ipc = pa.ipc.new_file(self._file, table.schema)
        self._ipc.write_table(table, max_chunksize=BATCH)


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
        names = self._reader.schema.names
        return [name.removesuffix("_member") for name in names if name.endswith("_member")]

    def table(self) -> pa.Table:
        """All rows, still in the mapped file."""
        return self._reader.read_all()

    def column(self, name: str) -> Iterator[Any]:
        """The cells of one column, row after row; one batch in memory at a time."""
        for number in range(self._reader.num_record_batches):
            yield from self._reader.get_batch(number).column(name).to_pylist()

    def row_numbers(self, rows: slice) -> np.ndarray:
        """The numbers that these rows of the segment have in their shards: int32."""
        return self.table()["row"].slice(rows.start, rows.stop - rows.start).to_numpy()

    def rows(self, positions: Iterable[int]) -> dict[int, CatalogRow]:
        """The rows at positions of this segment, each read once."""
        wanted = np.unique(np.fromiter(positions, dtype=np.int64))
        batches = np.searchsorted(self._ends, wanted, side="right")
        prefixes = member_prefixes(self.modalities)
        placed = frozenset(prefixes) - {IMAGE}
        rows: dict[int, CatalogRow] = {}
        for number in np.unique(batches):
            in_batch = wanted[batches == number]
            batch = self._reader.get_batch(int(number))
            # Not by `pa.array`, which imports pandas where it is installed: half a second.
            first = self._ends[number] - batch.num_rows
            indices = pa.Array.from_buffers(
                pa.int64(), len(in_batch), [None, pa.py_buffer(in_batch - first)]
            )
            taken = batch.take(indices)
            for position, cells in zip(in_batch.tolist(), taken.to_pylist(), strict=True):
                rows[position] = _to_row(cells, prefixes, placed)
        return rows


def _to_row(
    cells: dict[str, Any], prefixes: Mapping[str, str], placed: frozenset[str]
) -> CatalogRow:
    members = {
        modality: Origin(
            Place(cells[f"{prefix}member"], cells[f"{prefix}offset"], cells[f"{prefix}size"]),
            cells[f"{prefix}sha256"],
        )
        for modality, prefix in prefixes.items()
        if cells[f"{prefix}member"] is not None
    }
    picture = members.pop(IMAGE, None)
    captions = tuple(cells["captions"] or ())
    return CatalogRow(
        id=row_id(cells["shard"], cells["row"], cells["edition"]),
        key=cells["key"],
        shard=sys.intern(cells["shard"]),  # many rows share them
        url=sys.intern(cells["url"]),
        caption=captions[0] if captions[:1] == (cells["caption"],) else cells["caption"],
        captions=captions,
        meta=_to_meta(cells["meta"]),
        width=cells["width"],
        height=cells["height"],
        place=None if picture is None else picture.place,
        sha256=None if picture is None else picture.sha256,
        members=members,
        placed=placed,
    )


def _to_meta(value: dict[str, Any] | str | None) -> dict[str, Any]:
    if isinstance(value, str):  # objects without a common type are kept as text
        return _without_nulls(json.loads(value))
    return _without_nulls(value or {})


def meta_as_json(meta: pa.ChunkedArray) -> list[str | None]:
    """The cells of a catalog's `meta`, of whatever type, as JSON; None where one is null."""
    return [
        None if value is None else json.dumps(_to_meta(value), ensure_ascii=False)
        for value in meta.to_pylist()
    ]


def _without_nulls(value: Any) -> Any:
    """Without fields of the struct that this sample lacks."""
    if isinstance(value, dict):
        return {name: _without_nulls(part) for name, part in value.items() if part is not None}
    if isinstance(value, list):
        return [_without_nulls(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None  # Python reads NaN and Infinity from json, but no other program does
    return value

"""The catalog: what a position of a segment shows to people, as one memory-mapped Arrow file.

In come the Parquet rows of whole shards, in order; out goes `rows.arrow`, Arrow IPC without
compression, so that opening it costs nothing whatever its size and a hit touches a page or two. Its
record batches all hold `BATCH` rows but the last, hence a position is one division away from its
batch. Everything a preview needs stands in the row: the shard's URL and where the picture's bytes
lie. The cost is disk: text lies there as it is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from chiasm.index.segments.json_columns import Survey
from chiasm.pipeline.errors import CollectionError
from chiasm.pipeline.records import Place

BATCH = 4096  # rows of a record batch

# As they stand in the shard's Parquet file.
COPIED = ["key", "caption", "captions", "width", "height", "sha256", "member", "offset", "size"]


@dataclass(frozen=True, slots=True)
class IndexedShard:
    """A shard's Parquet file as it was when it was indexed: `rows` of it under `edition`, made from
    the shard at `url`; the file itself had `size` bytes and the store's `version`."""

    shard: str
    edition: str
    url: str
    rows: int
    size: int
    version: str

    @property
    def file(self) -> tuple[int, str]:
        return self.size, self.version


@dataclass(frozen=True, slots=True)
class CatalogRow:
    """One row. `place` and `sha256` are None for a row without a picture."""

    id: str
    key: str
    shard: str
    url: str
    caption: str | None
    captions: tuple[str, ...]
    meta: dict[str, Any]
    width: int | None
    height: int | None
    place: Place | None
    sha256: str | None


class Sink(Protocol):
    """An open file to write to; pyarrow asks for the rest."""

    closed: bool

    def write(self, data: Any, /) -> int: ...
    def flush(self) -> None: ...
    def tell(self) -> int: ...


class CatalogWriter:
    """Writes `rows.arrow` to an open file. Rows come shard by shard, in the order of `shards`."""

    def __init__(self, file: Sink, shards: Sequence[IndexedShard], survey: Survey) -> None:
        self._survey = survey
        self._names = {
            "shard": pa.array([shard.shard for shard in shards], pa.string()),
            "edition": pa.array([shard.edition for shard in shards], pa.string()),
            "url": pa.array([shard.url for shard in shards], pa.string()),
        }
        self._file = pa.PythonFile(file, mode="w")
        self._ipc: pa.RecordBatchFileWriter | None = None
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0

    def add(self, shard: int, first: int, rows: pa.Table) -> None:
        """Take consecutive rows of the shard at `shards[shard]`, the first being its row `first`.
        `rows` has the columns COPIED and `json`."""
        table = rows.select(COPIED)
        table = table.append_column("meta", self._survey.column(rows["json"].to_pylist()))
        places = np.arange(first, first + len(table), dtype=np.int32)
        table = table.append_column("row", pa.array(places))
        table = table.append_column("code", pa.array(np.full(len(table), shard, dtype=np.int32)))
        self._waiting.append(table)
        self._waiting_rows += len(table)
        if self._waiting_rows >= BATCH:
            self._flush(everything=False)

    def close(self) -> None:
        """Write what is left and the footer; the file itself stays open."""
        self._flush(everything=True)
        if self._ipc is not None:
            self._ipc.close()

    def _flush(self, *, everything: bool) -> None:
        table = pa.concat_tables(self._waiting) if self._waiting else None
        if table is None:
            return
        whole = len(table) if everything else len(table) // BATCH * BATCH
        for start in range(0, whole, BATCH):
            self._write(table.slice(start, min(BATCH, whole - start)).combine_chunks())
        self._waiting = [table.slice(whole)] if whole < len(table) else []
        self._waiting_rows = len(table) - whole

    def _write(self, table: pa.Table) -> None:
        # A file has one dictionary a column, so each batch gets the segment's whole lists of names.
        codes = table["code"].combine_chunks()
        for name, names in self._names.items():
            table = table.append_column(name, pa.DictionaryArray.from_arrays(codes, names))
        table = table.drop_columns("code")
        if self._ipc is None:
            self._ipc = pa.ipc.new_file(self._file, table.schema)
        self._ipc.write_table(table, max_chunksize=BATCH)


class Catalog:
    """A segment's `rows.arrow`, memory-mapped. `len` is the number of rows; safe to share."""

    def __init__(self, path: Path) -> None:
        try:
            self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
        except (pa.ArrowInvalid, OSError) as error:
            raise CollectionError(
                str(path),
                expected="a segment's catalog",
                found=str(error).splitlines()[0],
                do="run chiasm index build",
            ) from error
        last = self._reader.num_record_batches - 1
        self._rows = 0 if last < 0 else last * BATCH + self._reader.get_batch(last).num_rows

    def __len__(self) -> int:
        return self._rows

    @property
    def schema(self) -> pa.Schema:
        return self._reader.schema

    def table(self) -> pa.Table:
        """All rows, still in the mapped file."""
        return self._reader.read_all()

    def rows(self, positions: Iterable[int]) -> dict[int, CatalogRow]:
        """The rows at positions of this segment, each read once."""
        wanted = np.unique(np.fromiter(positions, dtype=np.int64))
        found: dict[int, CatalogRow] = {}
        for number in np.unique(wanted // BATCH):
            here = wanted[wanted // BATCH == number]
            # Not by `pa.array`, which imports pandas where it is installed: half a second.
            places = pa.Array.from_buffers(
                pa.int64(), len(here), [None, pa.py_buffer(here % BATCH)]
            )
            taken = self._reader.get_batch(int(number)).take(places)
            found.update(zip(here.tolist(), map(_row_of, taken.to_pylist()), strict=True))
        return found


def _row_of(cell: dict[str, Any]) -> CatalogRow:
    place = None
    if cell["member"] is not None:
        place = Place(cell["member"], cell["offset"], cell["size"])
    return CatalogRow(
        id=row_id(cell["shard"], cell["row"], cell["edition"]),
        key=cell["key"],
        shard=cell["shard"],
        url=cell["url"],
        caption=cell["caption"],
        captions=tuple(cell["captions"] or ()),
        meta=_meta_of(cell["meta"]),
        width=cell["width"],
        height=cell["height"],
        place=place,
        sha256=cell["sha256"],
    )


def row_id(shard_id: str, row: int, edition: str) -> str:
    return f"{shard_id}/{row}@{edition}"


def _meta_of(value: dict[str, Any] | str | None) -> dict[str, Any]:
    if isinstance(value, str):  # the survey kept whole objects as text
        return _present(json.loads(value))
    return _present(value or {})


def _present(value: Any) -> Any:
    """Without the fields that a struct has and this sample had not."""
    if isinstance(value, dict):
        return {name: _present(part) for name, part in value.items() if part is not None}
    if isinstance(value, list):
        return [_present(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None  # Python reads NaN and Infinity from json, but no other program does
    return value

"""Writes embeddings: one Parquet file a shard, in row groups.

In come `Embedded` batches, out comes `embeddings/<shard id>.parquet`, which bears its name if and
only if the shard is done. Vectors are float16 fixed-size lists, BYTE_STREAM_SPLIT and zstd without
dictionaries: several times faster to read than pyarrow's defaults, and smaller. Nothing in a file
depends on when or where it was written, so the same shard gives the same bytes.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from chiasm.pipeline.collection.parquet_schema import (
    FOOTER_KEY,
    ROW_GROUP,
    Footer,
    arrow_schema,
    parquet_name,
    storable,
)
from chiasm.pipeline.records import COLUMNS, Embedded, Shard
from chiasm.pipeline.storage import Folder


class ParquetWriter:
    """Writes one shard's rows under a temporary name; `commit` makes them the shard's file.

    Used in a `with`: leaving it without a commit leaves nothing behind.
    """

    def __init__(self, folder: Folder, shard: Shard, dim: int, run_id: str) -> None:
        self.shard, self.dim, self.rows = shard, dim, 0
        self._schema = arrow_schema(dim)
        self._file = folder.create(parquet_name(shard.id), run_id)
        self._parquet = pq.ParquetWriter(
            self._file,
            self._schema,
            compression="zstd",
            use_dictionary=False,
            column_encoding={f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in COLUMNS},
            # Free, and the only way to tell a flipped bit: vectors hardly compress, and zstd puts
            # what it cannot compress there as it is.
            write_page_checksum=True,
        )
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0

    def __enter__(self) -> ParquetWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # An abandoned pyarrow writer would close itself when collected, into a file that is gone.
        self._parquet.is_open = False
        self._file.__exit__(kind, error, trace)

    def write(self, embedded: Embedded) -> None:
        """Take a batch; whole row groups go to the file as they fill."""
        self._waiting.append(table_of(embedded, self.shard.id, self._schema))
        self._waiting_rows += len(embedded.batch)
        self.rows += len(embedded.batch)
        if self._waiting_rows >= ROW_GROUP:
            self._flush(everything=False)

    def commit(self, footer: Footer) -> None:
        """Write what is left and the footer, flush to the disk, give the file its name."""
        self._flush(everything=True)
        told = json.dumps(asdict(footer), sort_keys=True)
        self._parquet.add_key_value_metadata({FOOTER_KEY.decode(): told})
        self._parquet.close()
        self._file.commit()

    def _flush(self, *, everything: bool) -> None:
        if not self._waiting:
            return
        table = pa.concat_tables(self._waiting)
        whole = len(table) if everything else len(table) // ROW_GROUP * ROW_GROUP
        for start in range(0, whole, ROW_GROUP):
            group = table.slice(start, min(ROW_GROUP, whole - start))
            self._parquet.write_table(group.combine_chunks(), row_group_size=ROW_GROUP)
        self._waiting = [table.slice(whole)] if whole < len(table) else []
        self._waiting_rows = len(table) - whole


def table_of(embedded: Embedded, shard_id: str, schema: pa.Schema) -> pa.Table:
    """A batch as an Arrow table of `arrow_schema`."""
    rows = embedded.batch.rows
    samples = [row.sample for row in rows]
    places = [sample.place for sample in samples]
    plain: dict[str, list[Any]] = {
        "key": [storable(sample.key) for sample in samples],
        "shard": [shard_id] * len(rows),
        "caption": [
            storable(sample.captions[0]) if sample.captions else None for sample in samples
        ],
        "captions": [[storable(caption) for caption in sample.captions] for sample in samples],
        "json": [None if sample.json is None else storable(sample.json) for sample in samples],
        "width": [row.width for row in rows],
        "height": [row.height for row in rows],
        "sha256": [row.sha256 for row in rows],
        "member": [place and storable(place.member) for place in places],
        "offset": [place and place.offset for place in places],
        "size": [place and place.size for place in places],
    }
    arrays = []
    for column in schema:
        if column.name in COLUMNS:
            vectors = getattr(embedded, column.name)
            arrays.append(_vector_array(vectors, embedded.has[column.name], column.type))
        else:
            arrays.append(pa.array(plain[column.name], type=column.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def _vector_array(vectors: np.ndarray, has: np.ndarray, kind: pa.DataType) -> pa.Array:
    flat = pa.array(vectors.astype(np.float16).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, type=kind, mask=pa.array(~has))

"""Writes embeddings: one Parquet file a shard, in row groups.

In come batches, out comes `embeddings/<shard id>.parquet`, which has its final name if and only if
the shard is done. Vectors are float16 fixed-size lists, BYTE_STREAM_SPLIT and zstd without
dictionaries: several times faster to read than pyarrow's defaults, and smaller. Nothing in a file
depends on when or where it was written, so the same shard gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from chiasm.pipeline.collection.parquet_schema import (
    FOOTER_KEY,
    Footer,
    arrow_schema,
    earlier_parquet_name,
    member_prefixes,
    parquet_name,
    vector_columns,
)
from chiasm.pipeline.collection.token_columns import (
    SUFFIX,
    is_tokens,
    token_array,
    token_leaves,
)
from chiasm.pipeline.records import IMAGE, Decoded, Embedded, Shard, VectorColumn
from chiasm.pipeline.storage import Folder

ROW_GROUP = 256  # read whole for a single row; a scan of larger ones is hardly faster


class ParquetWriter:
    """Writes one shard's rows under a temporary name; `commit` makes them the shard's file.

    Used in a `with`: leaving it without a commit leaves nothing behind.
    """

    def __init__(
        self,
        folder: Folder,
        shard: Shard,
        dims: Mapping[str, int],
        run_id: str,
        tokens: Mapping[str, int] | None = None,
    ) -> None:
        """dims, tokens: as `arrow_schema` takes them."""
        self.shard, self.rows, self._folder = shard, 0, folder
        self._schema = arrow_schema(dims, tokens)
        self._file = folder.create(parquet_name(shard.id), run_id)
        self._parquet = pq.ParquetWriter(
            self._file,
            self._schema,
            compression="zstd",
            use_dictionary=False,
            column_encoding=dict.fromkeys(
                [
                    *(f"{name}.list.element" for name in vector_columns(dims)),
                    *token_leaves(tokens or {}),
                ],
                "BYTE_STREAM_SPLIT",
            ),
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

    def table(self, embedded: Embedded) -> pa.Table:
        """The rows of a batch as `append` takes them; in any thread."""
        return table_of(embedded, self.shard.id, self._schema)

    def write(self, embedded: Embedded) -> None:
        """Take a batch."""
        self.append(self.table(embedded))

    def append(self, table: pa.Table) -> None:
        """Take rows; whole row groups go to the file as they fill."""
        self._waiting.append(table)
        self._waiting_rows += len(table)
        self.rows += len(table)
        if self._waiting_rows >= ROW_GROUP:
            self._flush(everything=False)

    def commit(self, footer: Footer) -> None:
        """Write what is left and the footer, flush to the disk, give the file its name."""
        self._flush(everything=True)
        self._parquet.add_key_value_metadata({FOOTER_KEY.decode(): footer.to_json()})
        self._parquet.close()
        self._file.commit()
        earlier = earlier_parquet_name(self.shard.id)
        if earlier is not None:  # an older edition, which no reader takes any more
            self._folder.remove(earlier)

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
    plain: dict[str, list[Any]] = {
        "key": [storable(row.key) for row in rows],
        "shard": [shard_id] * len(rows),
        "caption": [storable(row.captions[0]) if row.captions else None for row in rows],
        "captions": [[storable(caption) for caption in row.captions] for row in rows],
        "json": [None if row.json is None else storable(row.json) for row in rows],
    }
    sizes = [row.origins[IMAGE].size if IMAGE in row.origins else None for row in rows]
    plain["width"] = [size and size[0] for size in sizes]
    plain["height"] = [size and size[1] for size in sizes]
    vectors = [column.name for column in schema if pa.types.is_fixed_size_list(column.type)]
    for modality, prefix in member_prefixes(vectors).items():
        plain |= _members(rows, modality, prefix)
    arrays = []
    for column in schema:
        if column.name in plain:
            arrays.append(pa.array(plain[column.name], type=column.type))
        elif is_tokens(column.type):
            found = embedded.tokens.get(column.name.removesuffix(SUFFIX))
            arrays.append(token_array(found, len(rows), column.type))
        else:
            arrays.append(_vector_array(embedded.columns.get(column.name), len(rows), column.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def _members(rows: list[Decoded], modality: str, prefix: str) -> dict[str, list[Any]]:
    """The member that each row's input of a modality was made from, by column."""
    origins = [row.origins.get(modality) for row in rows]
    return {
        f"{prefix}sha256": [origin and origin.sha256 for origin in origins],
        f"{prefix}member": [origin and storable(origin.place.member) for origin in origins],
        f"{prefix}offset": [origin and origin.place.offset for origin in origins],
        f"{prefix}size": [origin and origin.place.size for origin in origins],
    }


def _vector_array(column: VectorColumn | None, rows: int, kind: pa.FixedSizeListType) -> pa.Array:
    if column is None:  # no row of the batch has it
        column = VectorColumn(np.zeros((rows, kind.list_size), np.float32), np.zeros(rows, bool))
    flat = pa.array(column.vectors.astype(np.float16).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, type=kind, mask=pa.array(~column.has))


def storable(text: str) -> str:
    """Text as UTF-8 can hold it: Parquet has no lone surrogates (names that are not UTF-8 have)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    return text

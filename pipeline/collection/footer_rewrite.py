"""A shard's Parquet file with another footer; its rows stay, byte for byte."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from chiasm.pipeline.collection.embeddings import EmbeddingFile, stored_parquet_name
from chiasm.pipeline.collection.parquet_schema import FOOTER_KEY
from chiasm.pipeline.storage import Folder

_CHUNK = 4 << 20  # bytes copied at a time
_TAIL = 8  # after the metadata: its length, and the magic number


def rewrite_footer(
    folder: Folder, file: EmbeddingFile, changes: Mapping[str, Any], run_id: str
) -> None:
    """Write a shard's file again with other fields in its footer, None for those to leave out.
    Fields that this version does not know are kept; row groups are copied. Atomic."""
    with file.open() as parquet:
        metadata, schema = parquet.metadata, parquet.schema_arrow.remove_metadata()
    pairs = dict(metadata.metadata)
    fields = {**json.loads(pairs[FOOTER_KEY]), **changes}
    fields = {name: value for name, value in fields.items() if value is not None}
    pairs[FOOTER_KEY] = json.dumps(fields, sort_keys=True).encode()
    name = stored_parquet_name(folder, file.shard_id)
    found = folder.stat(name)
    assert found is not None
    left = found.size - metadata.serialized_size - _TAIL
    with folder.open_stream(name) as source, folder.create(name, run_id) as target:
        while left and (chunk := source.read(min(left, _CHUNK))):
            target.write(chunk)
            left -= len(chunk)
        target.write(_metadata_bytes(metadata, schema, pairs))
        target.commit()


def _metadata_bytes(
    metadata: pq.FileMetaData, schema: pa.Schema, pairs: Mapping[bytes, bytes]
) -> bytes:
    """The end of a Parquet file: its metadata with other key-value pairs, length, magic number."""
    empty = pa.BufferOutputStream()
    # The schema that Arrow stores is among the pairs already.
    with pq.ParquetWriter(empty, schema, store_schema=False) as writer:
        # Reversed, since pyarrow reverses them: what moves back has the bytes that it had.
        texts = {k.decode(): v.decode() for k, v in reversed(list(pairs.items()))}
        writer.add_key_value_metadata(texts)
    changed = pq.read_metadata(pa.BufferReader(empty.getvalue()))
    changed.append_row_groups(metadata)
    out = pa.BufferOutputStream()
    changed.write_metadata_file(out)
    return out.getvalue().to_pybytes()[len(b"PAR1") :]

"""The Parquet file of a shard: its columns, its row groups, and what its footer says."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from chiasm.pipeline.collection.ledger import LedgerEntry
from chiasm.pipeline.records import COLUMNS, Shard

SCHEMA = 1


ROW_GROUP = 256  # read whole for a single row; a scan of larger ones is hardly faster


FOOTER_KEY = b"chiasm"


@dataclass(frozen=True)
class Footer:
    """What a Parquet file says of itself, stored as JSON under the key `chiasm` of its metadata.

    `rows` and `dropped` count samples; source, edition and counts repeat the ledger's, and the two
    have to agree. `encoder`, `fingerprint` and `dim` repeat collection.json.
    """

    source: Shard
    edition: str
    rows: int
    dropped: int
    encoder: str
    fingerprint: str
    dim: int
    schema: int = SCHEMA

    def agrees_with(self, entry: LedgerEntry | None) -> bool:
        return (
            entry is not None
            and entry.quarantined is None
            and (entry.source, entry.edition) == (self.source, self.edition)
            and (entry.rows, len(entry.dropped)) == (self.rows, self.dropped)
        )


def arrow_schema(dim: int) -> pa.Schema:
    """The columns of docs/formats.md; vectors are null in rows that lack the modality."""
    vector = pa.list_(pa.field("element", pa.float16(), nullable=False), dim)
    return pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            pa.field("shard", pa.string(), nullable=False),
            ("caption", pa.string()),
            ("captions", pa.list_(pa.string())),
            ("json", pa.string()),
            *((column, vector) for column in COLUMNS),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("sha256", pa.string()),
            ("member", pa.string()),
            ("offset", pa.int64()),
            ("size", pa.int64()),
        ]
    )


def storable(text: str) -> str:
    """Text as UTF-8 can hold it: Parquet has no lone surrogates (names that are not UTF-8 have)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    return text


def parquet_name(shard_id: str) -> str:
    return f"embeddings/{shard_id}.parquet"

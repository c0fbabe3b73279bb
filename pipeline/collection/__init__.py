"""A collection on disk: its identity, Parquet file and ledger entry of each shard, runs."""

from chiasm.pipeline.collection.embeddings import (
    EmbeddingFile,
    embedded_shard_ids,
    embeddings,
    file_version,
    find_embedding,
    read_footer,
    vectors_of,
)
from chiasm.pipeline.collection.identity import (
    FOLDERS,
    SHARD_FOLDERS,
    Collection,
    Identity,
    create_or_check,
    read_identity,
)
from chiasm.pipeline.collection.ledger import (
    LedgerEntry,
    Tally,
    entries,
    ledger_name,
    read_entry,
    write_entry,
)
from chiasm.pipeline.collection.parquet_schema import (
    MEMBER_FIELDS,
    Footer,
    arrow_schema,
    member_prefixes,
    parquet_name,
    schema_version,
)
from chiasm.pipeline.collection.parquet_writer import ParquetWriter
from chiasm.pipeline.collection.runs import Run, RunRecord, process_alive, runs, this_machine

__all__ = [
    "FOLDERS",
    "MEMBER_FIELDS",
    "SHARD_FOLDERS",
    "Collection",
    "EmbeddingFile",
    "Footer",
    "Identity",
    "LedgerEntry",
    "ParquetWriter",
    "Run",
    "RunRecord",
    "Tally",
    "arrow_schema",
    "create_or_check",
    "embedded_shard_ids",
    "embeddings",
    "entries",
    "file_version",
    "find_embedding",
    "ledger_name",
    "member_prefixes",
    "parquet_name",
    "process_alive",
    "read_entry",
    "read_footer",
    "read_identity",
    "runs",
    "schema_version",
    "this_machine",
    "vectors_of",
    "write_entry",
]

"""A collection on disk: its identity, Parquet file and ledger entry of each shard, runs."""

from chiasm.pipeline.collection.embeddings import (
    EmbeddingFile,
    embedded_shard_ids,
    embeddings,
    file_version,
    find_embedding,
    read_footer,
    stored_parquet_name,
    vectors_of,
)
from chiasm.pipeline.collection.footer_rewrite import rewrite_footer
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
    own_entries,
    read_entry,
    rewrite_entry,
    write_entry,
)
from chiasm.pipeline.collection.observer import Life, RunObserver, Seen
from chiasm.pipeline.collection.parquet_schema import (
    MEMBER_FIELDS,
    Footer,
    arrow_schema,
    earlier_parquet_name,
    member_prefixes,
    parquet_name,
    schema_version,
    shard_id_of,
)
from chiasm.pipeline.collection.parquet_writer import ParquetWriter
from chiasm.pipeline.collection.processes import THIS_MACHINE, Machine, ProcessId
from chiasm.pipeline.collection.relocations import (
    RELOCATE,
    Relocations,
    known_shards,
    read_relocations,
    require_no_relocation,
    write_relocations,
)
from chiasm.pipeline.collection.run_record import RunRecord
from chiasm.pipeline.collection.runs import Run, runs

__all__ = [
    "FOLDERS",
    "MEMBER_FIELDS",
    "RELOCATE",
    "SHARD_FOLDERS",
    "THIS_MACHINE",
    "Collection",
    "EmbeddingFile",
    "Footer",
    "Identity",
    "LedgerEntry",
    "Life",
    "Machine",
    "ParquetWriter",
    "ProcessId",
    "Relocations",
    "Run",
    "RunObserver",
    "RunRecord",
    "Seen",
    "Tally",
    "arrow_schema",
    "create_or_check",
    "earlier_parquet_name",
    "embedded_shard_ids",
    "embeddings",
    "entries",
    "file_version",
    "find_embedding",
    "known_shards",
    "ledger_name",
    "member_prefixes",
    "own_entries",
    "parquet_name",
    "read_entry",
    "read_footer",
    "read_identity",
    "read_relocations",
    "require_no_relocation",
    "rewrite_entry",
    "rewrite_footer",
    "runs",
    "schema_version",
    "shard_id_of",
    "stored_parquet_name",
    "vectors_of",
    "write_entry",
    "write_relocations",
]

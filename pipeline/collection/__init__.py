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
    failure_name,
    ledger_name,
    read_entry,
    read_failure,
    shard_of_entry,
    shard_of_failure,
    write_entry,
    write_failure,
)
from chiasm.pipeline.collection.observer import Life, RunObserver, Seen
from chiasm.pipeline.collection.parquet_schema import (
    MEMBER_FIELDS,
    Footer,
    arrow_schema,
    member_prefixes,
    parquet_name,
    schema_version,
)
from chiasm.pipeline.collection.parquet_writer import ParquetWriter
from chiasm.pipeline.collection.processes import THIS_MACHINE, Machine, ProcessId
from chiasm.pipeline.collection.run_record import RunRecord
from chiasm.pipeline.collection.runs import Run, runs
from chiasm.pipeline.collection.summaries import (
    ShardFiles,
    ShardSummary,
    SummaryWriter,
    Survey,
    stat_files,
)

__all__ = [
    "FOLDERS",
    "MEMBER_FIELDS",
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
    "Run",
    "RunObserver",
    "RunRecord",
    "Seen",
    "ShardFiles",
    "ShardSummary",
    "SummaryWriter",
    "Survey",
    "Tally",
    "arrow_schema",
    "create_or_check",
    "embedded_shard_ids",
    "embeddings",
    "entries",
    "failure_name",
    "file_version",
    "find_embedding",
    "ledger_name",
    "member_prefixes",
    "parquet_name",
    "read_entry",
    "read_failure",
    "read_footer",
    "read_identity",
    "runs",
    "schema_version",
    "shard_of_entry",
    "shard_of_failure",
    "stat_files",
    "vectors_of",
    "write_entry",
    "write_failure",
]

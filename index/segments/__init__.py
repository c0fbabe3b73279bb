"""The index on disk: segments, their catalogs, generations, the cache of remote ones."""

from chiasm.index.segments.advice import add_command, build_command, column_advice, stale_advice
from chiasm.index.segments.audit_files import add_to_audit, read_audit
from chiasm.index.segments.catalog import BATCH, IndexedShard, copied_columns
from chiasm.index.segments.catalog_rows import meta_as_json
from chiasm.index.segments.checksums import Digest, FileSum
from chiasm.index.segments.deletions import (
    among,
    deleted_rows,
    rows_of_shards,
    with_deleted,
)
from chiasm.index.segments.generations import (
    Generation,
    current_number,
    keeping_segments,
    newest_whole,
    numbers,
    open_current,
    open_generation,
    open_segments,
    open_whole,
    read_current,
    read_if_there,
    read_manifest,
    read_shared,
)
from chiasm.index.segments.history import PastGeneration, audits_of, exact_columns, read_history
from chiasm.index.segments.json_columns import SchemaInference
from chiasm.index.segments.keywords import Keywords, KeywordWriter
from chiasm.index.segments.lists import ListCodes, rows_in_lists
from chiasm.index.segments.manifest import (
    Deletions,
    Drift,
    Manifest,
    SegmentEntry,
    SharedFile,
    StoredCalibration,
)
from chiasm.index.segments.merged import merge_lists
from chiasm.index.segments.names import (
    DELETED,
    SEGMENTS,
    TOKENS,
    TRAINED,
    calibration_file,
    deleted_file,
    manifest_name,
    report_file,
    run_of_folder,
    segment_file,
    trained_file,
)
from chiasm.index.segments.parquet_vectors import CACHED_BYTES, ParquetVectors
from chiasm.index.segments.partial import SegmentGone, fetch
from chiasm.index.segments.proposals import Proposals, distances, proposal_column, winners
from chiasm.index.segments.publish import live_number, publish, publish_edit
from chiasm.index.segments.record import SegmentRecord
from chiasm.index.segments.segment import Segment
from chiasm.index.segments.segment_writer import CopiedVectors, SegmentWriter
from chiasm.index.segments.source_file import digests_of
from chiasm.index.segments.stale import EmbeddedShards, stale_shards
from chiasm.index.segments.sweep import leftovers, remove_unnamed, sweep, sweep_published, sweeping
from chiasm.index.segments.terms import query_terms, stem_of
from chiasm.index.segments.token_files import CopiedTokens, SegmentTokens
from chiasm.index.segments.trained import Trained, best_columns, code_ranges, columns_of
from chiasm.index.segments.vector_files import (
    FORMS,
    Float16Vectors,
    Int8Vectors,
    Vectors,
    as_float32,
    dequantised,
    quantised,
)

__all__ = [
    "BATCH",
    "CACHED_BYTES",
    "DELETED",
    "FORMS",
    "SEGMENTS",
    "TOKENS",
    "TRAINED",
    "CopiedTokens",
    "CopiedVectors",
    "Deletions",
    "Digest",
    "Drift",
    "EmbeddedShards",
    "FileSum",
    "Float16Vectors",
    "Generation",
    "IndexedShard",
    "Int8Vectors",
    "KeywordWriter",
    "Keywords",
    "ListCodes",
    "Manifest",
    "ParquetVectors",
    "PastGeneration",
    "Proposals",
    "SchemaInference",
    "Segment",
    "SegmentEntry",
    "SegmentGone",
    "SegmentRecord",
    "SegmentTokens",
    "SegmentWriter",
    "SharedFile",
    "StoredCalibration",
    "Trained",
    "Vectors",
    "add_command",
    "add_to_audit",
    "among",
    "as_float32",
    "audits_of",
    "best_columns",
    "build_command",
    "calibration_file",
    "code_ranges",
    "column_advice",
    "columns_of",
    "copied_columns",
    "current_number",
    "deleted_file",
    "deleted_rows",
    "dequantised",
    "digests_of",
    "distances",
    "exact_columns",
    "fetch",
    "keeping_segments",
    "leftovers",
    "live_number",
    "manifest_name",
    "merge_lists",
    "meta_as_json",
    "newest_whole",
    "numbers",
    "open_current",
    "open_generation",
    "open_segments",
    "open_whole",
    "proposal_column",
    "publish",
    "publish_edit",
    "quantised",
    "query_terms",
    "read_audit",
    "read_current",
    "read_history",
    "read_if_there",
    "read_manifest",
    "read_shared",
    "remove_unnamed",
    "report_file",
    "rows_in_lists",
    "rows_of_shards",
    "run_of_folder",
    "segment_file",
    "stale_advice",
    "stale_shards",
    "stem_of",
    "sweep",
    "sweep_published",
    "sweeping",
    "trained_file",
    "winners",
    "with_deleted",
]

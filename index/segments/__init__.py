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
from chiasm.index.segments.history import PastGeneration, audits_of, read_history
from chiasm.index.segments.json_columns import SchemaInference
from chiasm.index.segments.keywords import Keywords, KeywordWriter
from chiasm.index.segments.lists import ListCodes, rows_in_lists
from chiasm.index.segments.manifest import (
    Deletions,
    Drift,
    Manifest,
    SegmentEntry,
    SharedFile,
)
from chiasm.index.segments.merged import merge_lists
from chiasm.index.segments.names import (
    DELETED,
    SEGMENTS,
    TRAINED,
    deleted_file,
    manifest_name,
    report_file,
    run_of_folder,
    segment_file,
    trained_file,
)
from chiasm.index.segments.partial import SegmentGone, fetch
from chiasm.index.segments.publish import live_number, publish, publish_edit
from chiasm.index.segments.record import SegmentRecord
from chiasm.index.segments.segment import Segment
from chiasm.index.segments.segment_writer import SegmentWriter
from chiasm.index.segments.stale import EmbeddedShards, stale_shards
from chiasm.index.segments.sweep import leftovers, remove_unnamed, sweep, sweep_published, sweeping
from chiasm.index.segments.terms import query_terms
from chiasm.index.segments.trained import Trained, best_columns, code_ranges, columns_of

__all__ = [
    "BATCH",
    "DELETED",
    "SEGMENTS",
    "TRAINED",
    "Deletions",
    "Digest",
    "Drift",
    "EmbeddedShards",
    "FileSum",
    "Generation",
    "IndexedShard",
    "KeywordWriter",
    "Keywords",
    "ListCodes",
    "Manifest",
    "PastGeneration",
    "SchemaInference",
    "Segment",
    "SegmentEntry",
    "SegmentGone",
    "SegmentRecord",
    "SegmentWriter",
    "SharedFile",
    "Trained",
    "add_command",
    "add_to_audit",
    "among",
    "audits_of",
    "best_columns",
    "build_command",
    "code_ranges",
    "column_advice",
    "columns_of",
    "copied_columns",
    "current_number",
    "deleted_file",
    "deleted_rows",
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
    "publish",
    "publish_edit",
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
    "sweep",
    "sweep_published",
    "sweeping",
    "trained_file",
    "with_deleted",
]

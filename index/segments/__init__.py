"""The index on disk: segments, their catalogs, generations, the cache of remote ones."""

from chiasm.index.segments.advice import build_command, column_advice
from chiasm.index.segments.catalog import IndexedShard, copied_columns
from chiasm.index.segments.checksums import Digest, FileSum
from chiasm.index.segments.generations import (
    Generation,
    current_number,
    keeping_segments,
    newest_whole,
    numbers,
    open_current,
    open_generation,
    read_manifest,
    read_shared,
)
from chiasm.index.segments.json_columns import SchemaInference
from chiasm.index.segments.lists import merge_lists, rows_in_lists
from chiasm.index.segments.manifest import Deletions, Manifest, SegmentEntry, SharedFile
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
from chiasm.index.segments.publish import live_number, publish
from chiasm.index.segments.segment import Segment, SegmentGone, SegmentWriter
from chiasm.index.segments.stale import EmbeddedShards, stale_shards
from chiasm.index.segments.sweep import leftovers, remove_unnamed, sweep, sweep_published, sweeping
from chiasm.index.segments.trained import Trained, code_ranges

__all__ = [
    "DELETED",
    "SEGMENTS",
    "TRAINED",
    "Deletions",
    "Digest",
    "EmbeddedShards",
    "FileSum",
    "Generation",
    "IndexedShard",
    "Manifest",
    "SchemaInference",
    "Segment",
    "SegmentEntry",
    "SegmentGone",
    "SegmentWriter",
    "SharedFile",
    "Trained",
    "build_command",
    "code_ranges",
    "column_advice",
    "copied_columns",
    "current_number",
    "deleted_file",
    "keeping_segments",
    "leftovers",
    "live_number",
    "manifest_name",
    "merge_lists",
    "newest_whole",
    "numbers",
    "open_current",
    "open_generation",
    "publish",
    "read_manifest",
    "read_shared",
    "remove_unnamed",
    "report_file",
    "rows_in_lists",
    "run_of_folder",
    "segment_file",
    "stale_shards",
    "sweep",
    "sweep_published",
    "sweeping",
    "trained_file",
]

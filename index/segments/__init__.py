"""The index on disk: segments, their catalogs, generations, the cache of remote ones."""

from chiasm.index.segments.advice import build_command, column_advice
from chiasm.index.segments.catalog import IndexedShard, copied_columns
from chiasm.index.segments.checksums import Digest, FileSum
from chiasm.index.segments.generations import (
    Generation,
    Manifest,
    SegmentEntry,
    TrainedEntry,
    current_number,
    keeping_segments,
    newest_whole,
    numbers,
    open_current,
    open_generation,
    read_manifest,
)
from chiasm.index.segments.json_columns import SchemaInference
from chiasm.index.segments.names import (
    SEGMENTS,
    TRAINED,
    manifest_name,
    run_of_folder,
    segment_file,
)
from chiasm.index.segments.publish import live_number, publish
from chiasm.index.segments.segment import Segment, SegmentGone, SegmentWriter
from chiasm.index.segments.stale import EmbeddedShards, stale_shards
from chiasm.index.segments.sweep import leftovers, remove_unnamed, sweep, sweep_published, sweeping

__all__ = [
    "SEGMENTS",
    "TRAINED",
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
    "TrainedEntry",
    "build_command",
    "column_advice",
    "copied_columns",
    "current_number",
    "keeping_segments",
    "leftovers",
    "live_number",
    "manifest_name",
    "newest_whole",
    "numbers",
    "open_current",
    "open_generation",
    "publish",
    "read_manifest",
    "remove_unnamed",
    "run_of_folder",
    "segment_file",
    "stale_shards",
    "sweep",
    "sweep_published",
    "sweeping",
]

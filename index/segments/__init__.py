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
    numbers,
    open_current,
    open_generation,
    publish,
)
from chiasm.index.segments.json_columns import SchemaInference
from chiasm.index.segments.segment import SEGMENTS, TRAINED, Segment, SegmentWriter, segment_file
from chiasm.index.segments.stale import stale_shards
from chiasm.index.segments.sweep import sweep

__all__ = [
    "SEGMENTS",
    "TRAINED",
    "Digest",
    "FileSum",
    "Generation",
    "IndexedShard",
    "Manifest",
    "SchemaInference",
    "Segment",
    "SegmentEntry",
    "SegmentWriter",
    "TrainedEntry",
    "build_command",
    "column_advice",
    "copied_columns",
    "current_number",
    "numbers",
    "open_current",
    "open_generation",
    "publish",
    "segment_file",
    "stale_shards",
    "sweep",
]

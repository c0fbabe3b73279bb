"""The index on disk: segments, their catalogs, generations, the cache of remote ones."""

from chiasm.index.segments.catalog import COPIED, CatalogRow, IndexedShard
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
    stale_shards,
)
from chiasm.index.segments.json_columns import Survey
from chiasm.index.segments.segment import SEGMENTS, TRAINED, Segment, SegmentWriter, segment_file
from chiasm.index.segments.sweep import sweep

__all__ = [
    "COPIED",
    "SEGMENTS",
    "TRAINED",
    "CatalogRow",
    "Digest",
    "FileSum",
    "Generation",
    "IndexedShard",
    "Manifest",
    "Segment",
    "SegmentEntry",
    "SegmentWriter",
    "Survey",
    "TrainedEntry",
    "current_number",
    "numbers",
    "open_current",
    "open_generation",
    "publish",
    "segment_file",
    "stale_shards",
    "sweep",
]

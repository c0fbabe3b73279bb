"""Embeddings -> an index: planned, trained, filled, published."""

from chiasm.index.build.build import BuildSummary, build_index
from chiasm.index.build.fill import Filled, SegmentTask, fill_segment

__all__ = ["BuildSummary", "Filled", "SegmentTask", "build_index", "fill_segment"]

"""Embeddings -> an index: planned, trained, filled, measured, published."""

from chiasm.index.build.build import BuildSummary, build_index
from chiasm.index.build.fill import Filled, SegmentTask, fill_segment
from chiasm.index.build.plot import draw_reports
from chiasm.index.build.promise import promised_recall
from chiasm.index.build.report import Report
from chiasm.index.build.truth import exact_top, recall_of

__all__ = [
    "BuildSummary",
    "Filled",
    "Report",
    "SegmentTask",
    "build_index",
    "draw_reports",
    "exact_top",
    "fill_segment",
    "promised_recall",
    "recall_of",
]

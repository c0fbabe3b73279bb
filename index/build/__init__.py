"""Embeddings -> an index: planned, trained, filled, measured, published; and edits of one that is
live."""

from chiasm.index.build.build import BuildSummary, build_index
from chiasm.index.build.drift import NOTABLE
from chiasm.index.build.edit import (
    EditSummary,
    add_to_index,
    compact_index,
    delete_from_index,
    roll_back_index,
)
from chiasm.index.build.fill import Filled, SegmentTask, fill_segment
from chiasm.index.build.plot import draw_reports
from chiasm.index.build.promise import promised_recall
from chiasm.index.build.report import Report, read_reports
from chiasm.index.build.select_rows import ByFilter, ById, ByKey, Selection, shards_named

__all__ = [
    "NOTABLE",
    "BuildSummary",
    "ByFilter",
    "ById",
    "ByKey",
    "EditSummary",
    "Filled",
    "Report",
    "SegmentTask",
    "Selection",
    "add_to_index",
    "build_index",
    "compact_index",
    "delete_from_index",
    "draw_reports",
    "fill_segment",
    "promised_recall",
    "read_reports",
    "roll_back_index",
    "shards_named",
]

"""Embeddings -> an index: planned, trained, filled, published; and edits of one that is live."""

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
from chiasm.index.build.select_rows import ById, ByKey, Selection, shards_named

__all__ = [
    "NOTABLE",
    "BuildSummary",
    "ById",
    "ByKey",
    "EditSummary",
    "Filled",
    "SegmentTask",
    "Selection",
    "add_to_index",
    "build_index",
    "compact_index",
    "delete_from_index",
    "fill_segment",
    "roll_back_index",
    "shards_named",
]

"""The codes of a column in memory: those of most segments merged once, those of the last apart.

An edit makes a new generation, whose first segments are mostly those of the one before. What was
merged of these is shared by both, since a search changes nothing: only the segments that follow are
merged anew. A search scans both parts. Once the second has more than a share of the rows of the
first, all are merged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chiasm.index.plan import Plan
from chiasm.index.query.filter_plan import fits_subset
from chiasm.index.query.subset import copy_passing, passing_by_list
from chiasm.index.segments import Segment, Trained, merge_lists

# Rows of the second part, of those of the first, up to which only the second is merged anew.
MOST_APART = 0.25


@dataclass(frozen=True)
class Resident:
    """The lists of consecutive segments as one FAISS index, whose row numbers are positions of the
    generation. Deleted rows are in none. of: what names the segments and their deletions."""

    index: Any
    of: tuple[object, ...]


def merge(
    segments: Sequence[Segment],
    column: str,
    trained: Trained,
    starts: np.ndarray,
    known: Sequence[Resident],
) -> list[Resident]:
    """The lists of all segments. starts: the position of each segment's first row. known: what an
    earlier generation with the same `trained` has in memory."""
    names = [(segment.record.id, segment.deletions) for segment in segments]
    rows = [len(segment) for segment in segments]

    def merged(first: int) -> Resident:
        index = merge_lists(segments[first:], column, trained, starts[first:])
        return Resident(index, tuple(names[first:]))

    shared = len(known[0].of) if known else 0
    if not shared or list(known[0].of) != names[:shared]:
        return [merged(0)]
    if shared == len(segments):
        return [known[0]]
    if sum(rows[shared:]) > MOST_APART * sum(rows[:shared]):
        return [merged(0)]
    if len(known) > 1 and list(known[1].of) == names[shared:]:
        return list(known)
    return [known[0], merged(shared)]


@dataclass(frozen=True)
class Narrowed:
    """indexes: what FAISS scans. mask: (rows,) bool, the rows in them that it may find, None for
    all. available: how many rows may be found. passing: how many of each list, (L,) int64, None
    where all do."""

    indexes: list[Any]
    mask: np.ndarray | None
    available: int
    passing: np.ndarray | None


def narrowed(
    residents: Sequence[Resident],
    trained: Trained,
    plan: Plan,
    masks: Sequence[np.ndarray | None],
    starts: np.ndarray,
) -> Narrowed:
    """The rows of each segment that its mask (rows,) bool lets pass, None for all."""
    indexes = [one.index for one in residents]
    if all(mask is None for mask in masks):
        return Narrowed(indexes, None, sum(index.ntotal for index in indexes), None)
    whole = [
        np.ones(count, bool) if mask is None else mask
        for mask, count in zip(masks, np.diff(starts).tolist(), strict=True)
    ]
    mask = np.concatenate(whole)
    if fits_subset(int(np.count_nonzero(mask)), plan):
        copies = [copy_passing(index, trained, mask) for index in indexes]
        counts = np.sum([count for _, count in copies], axis=0)
        return Narrowed([copied for copied, _ in copies], None, int(counts.sum()), counts)
    counts = np.sum([passing_by_list(index, mask) for index in indexes], axis=0)
    return Narrowed(indexes, mask, int(counts.sum()), counts)

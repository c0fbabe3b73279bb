"""The codes of a column in memory: those of most segments merged once, those of the last apart.

An edit makes a new generation, whose first segments are mostly those of the one before. What was
merged of these is shared by both, since a search changes nothing: only the segments that follow are
merged anew. A search scans both parts. Once the second has more than a share of the rows of the
first, all are merged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chiasm.index.plan import Plan
from chiasm.index.query.code_scan import CodeScan, PassingRows
from chiasm.index.query.fast_scan import FastScan
from chiasm.index.query.filter_plan import fits_subset
from chiasm.index.segments import Segment, Trained, merge_lists

# Rows of the second part, of those of the first, up to which only the second is merged anew.
MOST_APART = 0.25
LAST_APART = 0.125  # of the last segments, where all are merged: so that they may double


@dataclass(frozen=True)
class Resident:
    """The lists of consecutive segments, without deleted rows. of: what names the segments and
    their deletions."""

    scan: CodeScan
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

    def merged(first: int, after: int) -> Resident:
        codes = merge_lists(segments[first:after], column, trained, starts[first:])
        # Few rows are scanned as they are: to pack them for FastScan costs something at every
        # refresh, and its second step something at every search.
        fast = trained.plan.codes == "SQ8" and not first
        scan = FastScan if fast else CodeScan
        return Resident(scan(codes, trained), tuple(names[first:after]))

    count, ends = len(segments), starts.tolist()
    if not known:
        return [merged(0, count)]
    shared = len(known[0].of)
    if (
        not shared
        or list(known[0].of) != names[:shared]
        or (ends[count] - ends[shared] > MOST_APART * ends[shared])
    ):
        shared = _without_last(ends)
        parts = [merged(0, shared)]
    else:
        parts = [known[0]]
    if shared == count:
        return parts
    if len(known) > 1 and list(known[1].of) == names[shared:]:
        return [*parts, known[1]]
    return [*parts, merged(shared, count)]


def _without_last(ends: list[int]) -> int:
    """How many segments are merged where segments follow: an edit merges the last small ones on
    disk, and would have all codes read again if they were among those. ends: 0 and the end of each
    segment."""
    count = len(ends) - 1
    while count > 1 and ends[-1] - ends[count - 1] <= LAST_APART * ends[count - 1]:
        count -= 1
    return count


@dataclass(frozen=True)
class Narrowed:
    """scans: of the rows that may be found. available: how many these are. passing: those of each
    list, None where all are."""

    scans: list[CodeScan]
    available: int
    passing: PassingRows | None


def narrowed(
    residents: Sequence[Resident],
    plan: Plan,
    masks: Sequence[np.ndarray | None],
    starts: np.ndarray,
) -> Narrowed:
    """The rows of each segment that its mask (rows,) bool lets pass, None for all."""
    scans = [one.scan for one in residents]
    if all(mask is None for mask in masks):
        return Narrowed(scans, sum(map(len, scans)), None)
    whole = [
        np.ones(count, bool) if mask is None else mask
        for mask, count in zip(masks, np.diff(starts).tolist(), strict=True)
    ]
    mask = np.concatenate(whole)
    copied = fits_subset(int(np.count_nonzero(mask)), plan)
    scans = [one.subset(mask) if copied else one.selecting(mask) for one in scans]
    counts = np.sum([one.counts for one in scans], axis=0)
    means = _means(scans, counts) if copied else None
    return Narrowed(scans, int(counts.sum()), PassingRows(counts, means))


def _means(scans: Sequence[CodeScan], counts: np.ndarray) -> np.ndarray | None:
    """Of the rows of each list in all scans together, as of `PassingRows`."""
    weighted = []
    for one in scans:
        means = one.means()
        if means is None:
            return None
        weighted.append(means * one.counts[:, None])
    return np.sum(weighted, axis=0, dtype=np.float32) / np.maximum(counts, 1)[:, None]

"""What of the codes in memory generations share.

An edit makes a new generation, whose first segments are mostly those of the one before. What was
merged of these is used by both, since a search changes nothing: only the segments that follow are
merged anew, and scanned apart. They are few rows, so they are not packed for a scan by 4 bits.
Once they have more than a share of the others' rows, all are merged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chiasm.index.query.fast_scan import FastScan
from chiasm.index.query.resident import Resident
from chiasm.index.segments import Segment, Trained, best_columns, columns_of, merge_lists

# Rows that are scanned apart, of the others: up to here a search takes some percent longer.
MOST_APART = 0.25


@dataclass(frozen=True)
class SharedCodes:
    """The lists of consecutive segments, whose rows are positions of the generation. of: what names
    the segments and their deletions."""

    scanner: Resident
    of: tuple[object, ...]


def share_codes(
    segments: Sequence[Segment],
    column: str,
    trained: Trained,
    starts: np.ndarray,
    known: Sequence[SharedCodes],
) -> list[SharedCodes]:
    """The lists of all segments. starts: the position of each segment's first row, and the end.
    known: what an earlier generation with the same `trained` has in memory."""
    names = [(segment.record.id, segment.deletions) for segment in segments]
    shared = len(known[0].of) if known else 0
    if shared and list(known[0].of) == names[:shared]:
        if shared == len(segments):
            return [known[0]]
        if starts[-1] - starts[shared] <= MOST_APART * starts[shared]:
            if len(known) > 1 and list(known[1].of) == names[shared:]:
                return list(known)
            codes = merge_lists(segments[shared:], column, trained, starts[shared:])
            return [known[0], SharedCodes(Resident(codes, trained), tuple(names[shared:]))]
    kind = FastScan if trained.plan.codes == "SQ8" else Resident
    codes = merge_lists(segments, column, trained, starts)
    return [SharedCodes(kind(codes, trained), tuple(names))]


def scan_all(
    scanners: Sequence[Resident], coded: np.ndarray, lists: np.ndarray, wanted: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best `wanted` rows of each query in any of them, as `Resident.candidates` gives them."""
    found = [one.candidates(coded, lists, wanted) for one in scanners]
    if len(found) == 1:
        return found[0]
    scores, rows = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
    best = best_columns(scores, wanted)
    return columns_of(scores, best), columns_of(rows, best)

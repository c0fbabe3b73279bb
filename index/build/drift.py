"""Do the rows that are added still fit what the index was trained on?

Measured is the distance between a row and the centroid of its list, in the space of the lists. Of
the rows of the build the 99th percentile is taken, from a sample; of the rows that are added since,
the share beyond it. Rows as before give a hundredth; where it is much more, the lists are not those
that this data needs, and neither is the number of them that a search scans.
"""

from __future__ import annotations

from collections.abc import Collection as Names
from collections.abc import Sequence, Set

import numpy as np

from chiasm.index.segments import Drift, Generation, Segment, Trained, rows_of_shards

SAMPLE = 4096  # rows: the standard error of the percentile's rank is 0.16 points
FAR = 0.01
# Above it a rebuild is advised. Five times what is expected is not chance from some 50 rows on.
NOTABLE = 5 * FAR


def measure_drift(
    base: Generation, added: Sequence[Segment], retired: Set[str] = frozenset()
) -> dict[str, Drift]:
    """By column with lists, the drift of `base` and of the segments that are added to it. retired:
    shards of `base` that changed or are gone, whose vectors may not be readable any more."""
    entries = zip(base.manifest.segments, base.segments, strict=True)
    live = [(segment, _rows(segment, {*entry.retired, *retired})) for entry, segment in entries]
    new = [(segment, _rows(segment, ())) for segment in added]
    drift: dict[str, Drift] = {}
    for column in base.manifest.columns:
        trained, before = base.trained(column), base.manifest.drift.get(column)
        if trained is None:
            continue
        if before is None:
            distances = _distances(live, column, trained)
            if not len(distances):
                continue
            before = Drift(float(np.quantile(distances, 1 - FAR)), 0, 0)
        distances = _distances(new, column, trained)
        beyond = int(np.count_nonzero(distances > before.limit))
        drift[column] = Drift(before.limit, before.rows + len(distances), before.beyond + beyond)
    return drift


def _rows(segment: Segment, retired: Names[str]) -> np.ndarray:
    """The rows of a segment that are not of these shards, (n,) int64."""
    kept = [np.arange(rows.start, rows.stop) for shard, rows in rows_of_shards(segment)
            if shard.shard not in retired]  # fmt: skip
    return np.concatenate([np.empty(0, np.int64), *kept])


def _distances(
    segments: Sequence[tuple[Segment, np.ndarray]], column: str, trained: Trained
) -> np.ndarray:
    """Of a sample of these rows that have a vector, to their centroids: (n,) float32."""
    total = sum(len(rows) for _, rows in segments)
    drawn = np.random.default_rng(0).permutation(total)[:SAMPLE]
    drawn.sort()
    parts: list[np.ndarray] = []
    first = 0
    for segment, rows in segments:
        some = drawn[(drawn >= first) & (drawn < first + len(rows))] - first
        parts.append(segment.raw(column).take(rows[some]))
        first += len(rows)
    xb = np.concatenate(parts) if parts else None
    if xb is None or not len(xb := xb[xb.any(axis=1)]):
        return np.empty(0, np.float32)
    return trained.distances(xb)

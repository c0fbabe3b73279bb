"""Deleted rows: a bitmap a segment, and how they are carried into another generation.

    index/deleted/<run>/<segment>.bits     a bit a row, the first row in the lowest bit

A bitmap is written once, by the edit that made it; a later edit writes another one for the segment.
A row is the same in two generations where shard, edition and number in the shard are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from chiasm.index.segments.catalog import IndexedShard
from chiasm.index.segments.checksums import FileSum
from chiasm.index.segments.generations import Generation
from chiasm.index.segments.manifest import Deletions, Manifest, SegmentEntry
from chiasm.index.segments.names import deleted_file
from chiasm.index.segments.segment import Segment
from chiasm.pipeline.storage import Folder

Rows = Mapping[tuple[str, str], np.ndarray]  # by shard and edition: (rows of its file,) bool


def with_deleted(
    folder: Folder, run_id: str, generation: Generation, masks: Sequence[np.ndarray | None]
) -> Manifest:
    """The generation's manifest without those rows too that the masks name, (rows,) bool for each
    segment or None; the new bitmaps are written."""
    return replace(
        generation.manifest,
        segments=tuple(
            entry if mask is None else _with_deleted(folder, run_id, entry, segment, mask)
            for entry, segment, mask in zip(
                generation.manifest.segments, generation.segments, masks, strict=True
            )
        ),
    )


def _with_deleted(
    folder: Folder, run_id: str, entry: SegmentEntry, segment: Segment, mask: np.ndarray
) -> SegmentEntry:
    before = segment.deleted()
    deleted = mask if before is None else mask | before
    count = int(np.count_nonzero(deleted))
    if count == (0 if entry.deletions is None else entry.deletions.rows):
        return entry
    name = deleted_file(run_id, entry.id)
    content = np.packbits(deleted, bitorder="little").tobytes()
    folder.write_whole(name, content, run_id)
    return replace(entry, deletions=Deletions(count, name, FileSum.of(content)))


def rows_of_shards(segment: Segment) -> Iterator[tuple[IndexedShard, slice]]:
    """The shards of a segment, and which of its rows are theirs."""
    first = 0
    for shard in segment.record.shards:
        yield shard, slice(first, first + shard.rows)
        first += shard.rows


def deleted_rows(generation: Generation) -> Rows:
    """The rows of the indexed files that searches leave out, of the shards that have any: deleted
    ones, and those that a compaction has left out since."""
    found = {
        (shard.shard, shard.edition): np.ones(shard.removed, bool)
        for shard in generation.manifest.without_rows
    }
    for entry, segment in zip(generation.manifest.segments, generation.segments, strict=True):
        if entry.deletions is None and not any(shard.removed for shard in segment.record.shards):
            continue
        deleted = segment.deleted()
        for shard, rows in rows_of_shards(segment):
            if shard.shard in entry.retired:
                continue
            gone = np.zeros(shard.rows, bool) if deleted is None else deleted[rows]
            if shard.removed:
                of_file = np.ones(shard.file_rows, bool)
                of_file[segment.catalog.row_numbers(rows)] = gone
                gone = of_file
            found[shard.shard, shard.edition] = gone
    return {key: gone for key, gone in found.items() if gone.any()}


def carried_over(
    folder: Folder, run_id: str, new: Generation, now: Generation, began: Generation | None
) -> Manifest:
    """The manifest of `new`, a build that began with the generation `began`, without the rows that
    were deleted since: those that the generation `now` leaves out and `began` did not."""
    before = {} if began is None else deleted_rows(began)
    since = {
        key: gone & ~before[key] if key in before and before[key].shape == gone.shape else gone
        for key, gone in deleted_rows(now).items()
    }
    return with_deleted(
        folder,
        run_id,
        new,
        [among(segment, since) for segment in new.segments]
        if since
        else [None] * len(new.segments),
    )


def among(segment: Segment, rows: Rows) -> np.ndarray | None:
    """Which rows of a segment are among `rows`, (rows,) bool; None where none is."""
    mask = np.zeros(len(segment), bool)
    for shard, part in rows_of_shards(segment):
        gone = rows.get((shard.shard, shard.edition))
        if gone is not None and len(gone) == shard.file_rows:
            mask[part] = gone[segment.catalog.row_numbers(part)] if shard.removed else gone
    return mask if mask.any() else None

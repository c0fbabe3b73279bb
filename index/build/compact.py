"""Compaction: segments of which many rows are deleted, and small ones, written anew as few.

Rows come from the segments' own files, catalog and float16, so the embeddings are not read, and
vectors, ids and scores stay the same. Which rows of a shard were left out is kept in
`IndexedShard.removed`, so that nothing takes the shard for a changed one. What other commands
delete or retire meanwhile is taken over before the result is published.

Memory: the codes of one segment that is read and of one that is written, of as many rows as fit the
memory of a build, or of one shard; and, as a search has it, a byte for each row of segments of
which rows are or were deleted. Mapped files are the page cache's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from chiasm.index.build.build import Progress
from chiasm.index.build.propose import token_widths
from chiasm.index.build.stored_columns import StoredColumns
from chiasm.index.plan import IndexSettings
from chiasm.index.segments import (
    BATCH,
    Generation,
    IndexedShard,
    Manifest,
    SchemaInference,
    Segment,
    SegmentEntry,
    SegmentWriter,
    among,
    copied_columns,
    deleted_rows,
    meta_as_json,
    open_segments,
    rows_of_shards,
    with_deleted,
)
from chiasm.pipeline.collection import Collection, Run

SPARSE = 0.2  # deleted share from which a segment is written anew: a scan passes over all its rows
SMALL = 4  # segments that this many of would fill one are merged: each costs a search some 10 us

TAIL = 4  # of that size a search among 100,000 rows pays a tenth for them
GROWTH = 4


@dataclass(frozen=True)
class Source:
    """A shard of a segment. rows: the shard's in the segment, deleted ones too."""

    segment: Segment
    rows: slice
    shard: IndexedShard  # as the new segment has it: of the rows that are left


@dataclass(frozen=True)
class Compacted:
    """ids: of the segments that were read. retired: which of their shards were not. segments: those
    that were written. without_rows: shards of which no row was left."""

    ids: frozenset[str]
    retired: frozenset[str]
    segments: tuple[SegmentEntry, ...]
    without_rows: tuple[IndexedShard, ...]


class Compaction:
    """Compacts a generation. counts: segments read and written, rows written and left out."""

    def __init__(
        self,
        collection: Collection,
        run: Run,
        settings: IndexSettings,
        progress: Progress,
        first: int = 0,
    ) -> None:
        """first: the number of the first segment that it writes."""
        self.folder, self.identity, self.run = collection.folder, collection.identity, run
        self.settings, self.progress = settings, progress
        self.counts: dict[str, int] = {}
        self._done: Compacted | None = None
        self.next = first  # the number of the next segment

    def __call__(self, base: Generation) -> Manifest | None:
        ids = {entry.id for entry in base.manifest.segments}
        if self._done is None or not self._done.ids <= ids:
            numbers = self._select(base)
            self.counts = {"read": 0, "written": 0, "rows": 0, "removed": 0}
            if not numbers:
                return None
            self._done = self._write(base, numbers)
        return self._replaced(base, self._done)

    def merged(self, base: Generation, numbers: Sequence[int]) -> Manifest:
        """The manifest of `base` with these segments as one."""
        return self._replaced(base, self._write(base, numbers))

    def _select(self, base: Generation) -> list[int]:
        """Which segments to write anew, none where that would make nothing better."""
        entries = base.manifest.segments
        most = self.settings.rows_of_segment(base.manifest.columns)
        sparse = {
            number
            for number, entry in enumerate(entries)
            if entry.rows - entry.live_rows > SPARSE * entry.rows
        }
        small = {number for number, entry in enumerate(entries) if SMALL * entry.live_rows <= most}
        return sorted(sparse | small) if sparse or len(small) > 1 else []

    def _write(self, base: Generation, numbers: Sequence[int]) -> Compacted:
        pairs = [(base.manifest.segments[number], base.segments[number]) for number in numbers]
        sources = [source for entry, segment in pairs for source in _sources(entry, segment)]
        total = sum(source.shard.rows for source in sources)
        most = self.settings.rows_of_segment(base.manifest.columns)
        entries: list[SegmentEntry] = []
        for group in _groups([source for source in sources if source.shard.rows], most):
            entries.append(self._write_segment(base, group))
            self.progress("compact", sum(entry.rows for entry in entries), total)
        read = sum(entry.rows for entry, _ in pairs)
        self.counts = {
            "read": len(numbers),
            "written": len(entries),
            "rows": total,
            "removed": read - total,
        }
        return Compacted(
            frozenset(entry.id for entry, _ in pairs),
            frozenset(shard for entry, _ in pairs for shard in entry.retired),
            tuple(entries),
            tuple(source.shard for source in sources if not source.shard.rows),
        )

    def _write_segment(self, base: Generation, group: Sequence[Source]) -> SegmentEntry:
        catalogs = [source.segment.catalog.schema for source in group]
        copied = [
            pa.field(name, next(one.field(name).type for one in catalogs if name in one.names))
            for name in copied_columns(self.identity.columns)
            if any(name in one.names for one in catalogs)
        ]
        types = {str(one.field("meta").type) for one in catalogs}
        schema = _common_schema(group) if len(types) > 1 else None
        trained = {column: base.trained(column) for column in base.manifest.columns}
        widths = token_widths(self.identity, base.manifest.columns)
        number, self.next = self.next, self.next + 1
        with SegmentWriter(
            self.folder,
            f"{self.run.id}-{number:03d}",
            self.run.id,
            shards=[source.shard for source in group],
            schema=schema or SchemaInference(),
            copied=[field.name for field in copied],
            plans=base.manifest.columns,
            trained=trained,
            dim=base.manifest.dim,
            batch_bytes=self.settings.batch_bytes,
            capacity=sum(source.shard.rows for source in group),
            tokens={column: (width, None) for column, width in widths.items()},
        ) as writer:
            stored = None
            for shard, source in enumerate(group):
                if stored is None or stored.segment.record is not source.segment.record:
                    stored = None  # first, so that the codes of one segment are in memory
                    stored = StoredColumns(source.segment.unopened(), trained)
                for part, rows in _parts(replace(source, segment=stored.segment)):
                    columns = {name: stored.copied(name, part) for name in trained}
                    tokens = {name: stored.tokens(name, one, part) for name, one in widths.items()}
                    writer.copy(shard, _as_copied(rows, copied, schema), columns, tokens)
            record, checksum = writer.commit()
        return SegmentEntry(record.id, record.rows, checksum)

    def _replaced(self, base: Generation, done: Compacted) -> Manifest:
        """The manifest with the new segments in place of the first of those that were read, and
        without what was deleted or retired since."""
        retired = (
            frozenset(
                shard
                for entry in base.manifest.segments
                if entry.id in done.ids
                for shard in entry.retired
            )
            - done.retired
        )
        written = replace(base.manifest, segments=done.segments)
        opened = open_segments(self.folder, written)
        deleted = deleted_rows(base)
        masks: list[np.ndarray | None] = []
        entries: list[SegmentEntry] = []
        for entry, segment in zip(done.segments, opened, strict=True):
            mask = among(segment, deleted)
            gone = [(shard, rows) for shard, rows in rows_of_shards(segment)
                    if shard.shard in retired]  # fmt: skip
            for _, rows in gone:
                mask = np.zeros(len(segment), bool) if mask is None else mask
                mask[rows] = True
            masks.append(mask)
            entries.append(replace(entry, retired=tuple(shard.shard for shard, _ in gone)))
        written = replace(written, segments=tuple(entries))
        written = with_deleted(
            self.folder, self.run.id, Generation(0, written, opened, self.folder), masks
        )
        old = base.manifest.segments
        place = next(number for number, entry in enumerate(old) if entry.id in done.ids)
        before = [entry for entry in old[:place] if entry.id not in done.ids]
        after = [entry for entry in old[place:] if entry.id not in done.ids]
        without = [shard for shard in done.without_rows if shard.shard not in retired]
        return replace(
            base.manifest,
            segments=(*before, *written.segments, *after),
            without_rows=(*base.manifest.without_rows, *without),
        )


def last_to_merge(entries: Sequence[SegmentEntry], added: int, most: int) -> list[int]:
    """Which of the last segments are to be merged after `added` ones came to their end, none where
    that is not worth it yet: each is smaller than GROWTH times all behind it, together they have at
    most so many rows, and they are more than TAIL. So there are few small ones at any time, and a
    row is written anew a few times for each factor of GROWTH."""
    rows, first = sum(entry.live_rows for entry in entries[len(entries) - added :]), 0
    for number in range(len(entries) - added - 1, -1, -1):
        live = entries[number].live_rows
        if live >= GROWTH * rows or rows + live > most:
            first = number + 1
            break
        rows += live
    numbers = list(range(first, len(entries)))
    return numbers if added and rows <= most and len(numbers) > TAIL else []


def _groups(sources: Sequence[Source], most: int) -> Iterator[list[Source]]:
    """Whole shards, in order, for one segment each of `most` rows, or of one shard."""
    group: list[Source] = []
    rows = 0
    for source in sources:
        if group and rows + source.shard.rows > most:
            yield group
            group, rows = [], 0
        group.append(source)
        rows += source.shard.rows
    if group:
        yield group


def _sources(entry: SegmentEntry, segment: Segment) -> Iterator[Source]:
    """What is left of each shard that is not retired."""
    deleted = segment.deleted()
    for shard, rows in rows_of_shards(segment):
        if shard.shard in entry.retired:
            continue
        gone = 0 if deleted is None else int(np.count_nonzero(deleted[rows]))
        left = replace(shard, rows=shard.rows - gone, removed=shard.removed + gone)
        yield Source(segment, rows, left)


def _parts(source: Source) -> Iterator[tuple[np.ndarray, pa.Table]]:
    """The rows that are left, some at a time: their numbers in the segment, (n,) int64, and the
    catalog's rows."""
    table, deleted = source.segment.catalog.table(), source.segment.deleted()
    for start in range(source.rows.start, source.rows.stop, BATCH):
        some = slice(start, min(start + BATCH, source.rows.stop))
        kept = np.ones(some.stop - start, bool) if deleted is None else ~deleted[some]
        if kept.any():
            yield start + np.flatnonzero(kept), table.slice(start, len(kept)).filter(pa.array(kept))


def _common_schema(group: Sequence[Source]) -> SchemaInference:
    """The type that fits the json of all rows, where the segments' types differ."""
    schema = SchemaInference()
    for source in group:
        for _, rows in _parts(source):
            schema.add(meta_as_json(rows["meta"]))
    schema.finish()
    return schema


def _as_copied(
    rows: pa.Table, copied: Sequence[pa.Field], schema: SchemaInference | None
) -> pa.Table:
    """The columns that a catalog copies, null where this one lacks one, `meta` in the common type,
    and `row`."""
    arrays = [
        rows[field.name] if field.name in rows.column_names else pa.nulls(len(rows), field.type)
        for field in copied
    ]
    meta = rows["meta"] if schema is None else schema.column(meta_as_json(rows["meta"]))
    names = [*(field.name for field in copied), "meta", "row"]
    return pa.table([*arrays, meta, rows["row"]], names=names)

"""Adding to an index: the shards that it does not cover as they are now.

Their rows are written into segments of their own, by the plans and centroids that the index has.
Rows of shards that changed or are gone are deleted, and the shards are retired in the old segment's
entry: what that says of them does not count any more. The json of the added rows gets a type of its
own: the types of two segments may differ. Where many small segments have come together, they are
merged with the new one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Set
from dataclasses import dataclass, replace

import numpy as np

from chiasm.index.build.build import Build, Progress, fill_here
from chiasm.index.build.compact import Compaction, last_to_merge
from chiasm.index.build.covered import CoveredShards
from chiasm.index.build.drift import measure_drift
from chiasm.index.plan import IndexSettings
from chiasm.index.segments import (
    EmbeddedShards,
    Generation,
    IndexedShard,
    Manifest,
    SegmentEntry,
    open_segments,
    rows_of_shards,
    with_deleted,
)
from chiasm.pipeline.collection import Collection, Run


@dataclass(frozen=True)
class Added:
    """Segments of new rows: their entries, what they cover, and widened fields of the json."""

    segments: tuple[SegmentEntry, ...]
    indexed: dict[str, IndexedShard]
    meta: list[dict]


class Addition:
    """Brings a generation up to the embeddings. counts: the rows added, and the shards by what
    became of them. damaged: the shards that cannot be read, and why; what the index has of them
    stays."""

    def __init__(
        self, collection: Collection, run: Run, settings: IndexSettings, progress: Progress
    ) -> None:
        self.collection, self.run = collection, run
        self.settings, self.progress = settings, progress
        self.counts: dict[str, int] = {}
        self.damaged: dict[str, str] = {}
        self._written: tuple[object, Added] | None = None  # and of what
        self._segments = 0  # that this run has written

    def __call__(self, base: Generation) -> Manifest | None:
        embedded = EmbeddedShards.list(self.collection.folder)
        states = embedded.stale(base.indexed_shards())
        self.counts = {"rows": 0, **Counter(states.values())}
        self.damaged = {
            shard_id: embedded.damage(shard_id)
            for shard_id, state in states.items()
            if state == "damaged"
        }
        wanted = {id for id, state in states.items() if state in ("new", "changed")}
        added = self._write(base, embedded, wanted)
        gone = {id for id, state in states.items() if state == "gone"}
        retired = gone | (added.indexed.keys() & base.indexed_shards().keys())
        if not retired and not added.indexed:
            return None
        self.counts["rows"] = sum(entry.rows for entry in added.segments)
        manifest = self._without(base, retired)
        written = replace(manifest, segments=added.segments)
        opened = open_segments(self.collection.folder, written)
        filled = {shard.shard for segment in opened for shard in segment.record.shards}
        empty = tuple(shard for name, shard in added.indexed.items() if name not in filled)
        manifest = replace(
            manifest,
            segments=(*manifest.segments, *added.segments),
            without_rows=(*manifest.without_rows, *empty),
            meta=[*manifest.meta, *(one for one in added.meta if one not in manifest.meta)],
        )
        manifest = replace(manifest, drift=measure_drift(base, opened, retired))
        return self._with_last_merged(base, manifest, len(added.segments))

    def _with_last_merged(self, base: Generation, manifest: Manifest, added: int) -> Manifest:
        """Each segment costs a search some microseconds: many small ones become one."""
        most = self.settings.rows_of_segment(manifest.columns)
        numbers = last_to_merge(manifest.segments, added, most)
        if not numbers:
            return manifest
        folder = self.collection.folder
        segments = open_segments(folder, manifest, base)
        compaction = Compaction(
            self.collection, self.run, self.settings, self.progress, self._segments
        )
        merged = compaction.merged(Generation(0, manifest, segments, folder), numbers)
        self._segments = compaction.next
        return merged

    def _write(self, base: Generation, embedded: EmbeddedShards, wanted: Set[str]) -> Added:
        """The rows of these shards as segments; those of an earlier call, if it wrote the same."""
        what = (
            base.manifest.trained,
            base.manifest.columns,
            {shard_id: embedded.stats[shard_id] for shard_id in wanted},
        )
        if self._written is not None and self._written[0] == what:
            return self._written[1]
        covered = CoveredShards(self.collection, embedded, wanted)
        added = Added((), dict(covered.indexed), [])
        if covered.rows:
            build = Build(covered, self.run, self.settings, self.progress)
            build.infer_schema()
            build.shared = dict(base.manifest.trained)
            segments = build.write_segments(base.manifest.columns, fill_here, self._segments)
            self._segments = build.numbered
            added = Added(tuple(segments), dict(covered.indexed), build.schema.report())
        self._written = what, added
        return added

    def _without(self, base: Generation, retired: Set[str]) -> Manifest:
        """The manifest without these shards. Segments of which nothing is left go."""
        masks: list[np.ndarray | None] = []
        names: list[tuple[str, ...]] = []
        for entry, segment in zip(base.manifest.segments, base.segments, strict=True):
            mask = np.zeros(len(segment), bool)
            new: list[str] = []
            for shard, rows in rows_of_shards(segment):
                if shard.shard in retired and shard.shard not in entry.retired:
                    mask[rows] = True
                    new.append(shard.shard)
            masks.append(mask if new else None)
            names.append((*entry.retired, *new))
        manifest = with_deleted(self.collection.folder, self.run.id, base, masks)
        segments = tuple(
            replace(entry, retired=gone)
            for entry, gone, segment in zip(manifest.segments, names, base.segments, strict=True)
            if len(gone) < len(segment.record.shards)
        )
        left = tuple(shard for shard in manifest.without_rows if shard.shard not in retired)
        return replace(manifest, segments=segments, without_rows=left)

"""A generation's manifest, `generations/<number>.json`: its segments, plans and shared files."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import FiniteFloat

from chiasm.index.plan import Count, Plan
from chiasm.index.segments.advice import build_command
from chiasm.index.segments.catalog import IndexedShard
from chiasm.index.segments.checksums import FileSum
from chiasm.index.segments.names import is_deleted_file, is_segment_id, is_trained_file
from chiasm.pipeline.errors import CollectionError
from chiasm.pipeline.storage import Folder, display_name
from chiasm.pipeline.stored_records import read_record

CHANGED = 0.1  # of the rows that a calibration was made of
SCHEMA = 2  # of 1 every column is exact, whatever its plan says: see record.py


@dataclass(frozen=True)
class SharedFile:
    """A file below `index/` that is no segment's: its name and its checksum."""

    file: str
    checksum: FileSum


@dataclass(frozen=True)
class StoredCalibration(SharedFile):
    """What says whether nothing here matches, made of so many rows."""

    rows: Count

    def is_old(self, rows: int) -> bool:
        """Whether there are so many more or fewer rows by now that it should be made anew."""
        return abs(rows - self.rows) > CHANGED * self.rows


@dataclass(frozen=True)
class Deletions:
    """Rows of a segment that searches leave out: how many, and the file of the bitmap, a bit a row,
    the first row in the lowest bit."""

    rows: Count
    file: str
    checksum: FileSum


@dataclass(frozen=True)
class SegmentEntry:
    """A live segment: `checksum` is that of its segment.json. deletions: what searches leave out.
    retired: its shards all of whose rows were deleted because the shard is gone, or because a later
    segment has its newer rows."""

    id: str
    rows: Count
    checksum: FileSum
    deletions: Deletions | None = None
    retired: tuple[str, ...] = ()

    @property
    def live_rows(self) -> int:
        return self.rows - (self.deletions.rows if self.deletions else 0)


@dataclass(frozen=True)
class Drift:
    """How well rows that were added fit the centroids of their column. limit: the 99th percentile
    of the distances between rows that were there at training and their centroids. rows: how many
    added ones were measured, beyond: how many of them are farther."""

    limit: FiniteFloat
    rows: Count
    beyond: Count

    @property
    def share(self) -> float:
        return self.beyond / max(1, self.rows)


@dataclass(frozen=True)
class Manifest:
    """What `generations/<number>.json` holds.

    run: the build or edit that made it, `command` its name. created: seconds since the epoch.
    columns: the index of each vector column. trained: what the segments of a column share, files
    below `index/trained/`. reports: what was measured when a column's plan was chosen.
    calibrations: by column, see index/query/calibrate.py. meta: fields of the samples' json whose
    types were widened. parent: the generation that an edit changed, None of a build. after: the one
    that was live when a build began, None of an earlier version's. restores: the one that a
    rollback made live again. without_rows: shards of which no segment has a row. drift: by column,
    of what was added since the build.
    """

    run: str
    created: FiniteFloat
    encoder: str
    fingerprint: str
    dim: Count
    columns: dict[str, Plan]
    trained: dict[str, SharedFile]
    segments: tuple[SegmentEntry, ...]
    meta: list[dict[str, Any]] = field(default_factory=list)
    reports: dict[str, SharedFile] = field(default_factory=dict)
    calibrations: dict[str, StoredCalibration] = field(default_factory=dict)
    command: str = "index build"
    parent: int | None = None
    after: int | None = None
    restores: int | None = None
    without_rows: tuple[IndexedShard, ...] = ()
    drift: dict[str, Drift] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def positions(self) -> int:
        """How many rows the segments have, deleted ones too: a position is below it."""
        return sum(entry.rows for entry in self.segments)

    def basis(self, column: str) -> tuple[Plan | None, SharedFile | None]:
        """What the recall of a column rests on: a build begins anew, an edit goes on."""
        return self.columns.get(column), self.trained.get(column)

    @property
    def is_edit(self) -> bool:
        return self.parent is not None

    @property
    def deleted(self) -> int:
        """How many rows of the segments searches leave out."""
        return self.positions - self.rows

    @property
    def rows(self) -> int:
        """How many rows can be found."""
        return sum(entry.live_rows for entry in self.segments)

    def shared_files(self) -> dict[str, FileSum]:
        """The files that are no segment's, by name."""
        shared = [*self.trained.values(), *self.reports.values(), *self.calibrations.values()]
        shared += [entry.deletions for entry in self.segments if entry.deletions]
        return {one.file: one.checksum for one in shared}

    def to_json(self) -> bytes:
        text = json.dumps(asdict(self), ensure_ascii=False, indent=1)
        return text.encode("utf-8", "surrogatepass") + b"\n"

    @classmethod
    def from_json(cls, data: bytes, folder: Folder, name: str) -> Manifest:
        """Raises CollectionError for a damaged manifest, and for names that chiasm does not
        write."""
        where, do = display_name(folder.url_of(name)), f"run {build_command(folder)}"
        manifest = read_record(data, where, cls, what="a generation", do=do, schema=SCHEMA)
        odd = [entry.id for entry in manifest.segments if not is_segment_id(entry.id)]
        odd += [
            name
            for name in manifest.shared_files()
            if not is_trained_file(name) and not is_deleted_file(name)
        ]
        faults = [f"the name {name!r}" for name in odd]
        faults += [
            f"segment {entry.id} of {entry.rows} rows, {entry.deletions.rows} of them deleted"
            for entry in manifest.segments
            if entry.deletions and entry.deletions.rows > entry.rows
        ]
        faults += [
            f"column {column} without what its segments share"
            for column, plan in manifest.columns.items()
            if not plan.exact and column not in manifest.trained
        ]
        if faults:
            raise CollectionError(where, expected="a generation", found=faults[0], do=do)
        return manifest

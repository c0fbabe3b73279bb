"""What a build that was killed has left, for the next one of the same recipe to take up.

Two builds have the same recipe where settings, columns, encoder and the lines of a file of queries
are the same. Taken up are the plans with what was learned and measured for them, and each whole
segment of shards that are as they were: a shard that changed costs its segment. A plan is not taken
up where the collection has grown or shrunk since, nor a segment whose json has another type than
all of it has now. The sweep before a build leaves them; the one at its end removes what was not
used.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from chiasm.index.build.covered import CoveredShards
from chiasm.index.build.fill import Filled, SegmentTask
from chiasm.index.build.report import Tried
from chiasm.index.build.samples import query_lines
from chiasm.index.plan import IndexSettings, Plan
from chiasm.index.segments import (
    SEGMENTS,
    TRAINED,
    FileSum,
    Segment,
    SegmentEntry,
    SegmentRecord,
    Trained,
    numbers,
    read_if_there,
    read_manifest,
    report_file,
    run_of_folder,
    segment_file,
    trained_file,
)
from chiasm.pipeline.collection import Run, runs
from chiasm.pipeline.errors import CollectionError
from chiasm.pipeline.storage import Folder, display_name

COMMAND = "index build"
_NOT_OF_A_RECIPE = ("keep_generations", "keep_seconds")  # what is built does not depend on these
GROWN = 0.1  # share of the rows: with so many more or fewer the same plan would be chosen


def recipe_of(
    covered: CoveredShards, settings: IndexSettings, columns: Sequence[str] | None
) -> dict[str, Any]:
    """What decides what a build writes, for its record: a digest of what is to be built, one of the
    files that it covers, and how many rows these have. Of a file of queries its lines decide, not
    its name; UsageError where it cannot be used."""
    facts_of_settings: dict[str, Any] = {
        name: value for name, value in asdict(settings).items() if name not in _NOT_OF_A_RECIPE
    }
    if settings.queries:
        facts_of_settings["queries"] = query_lines(settings.queries)
    shards = [asdict(covered.indexed[file.shard_id]) for file in covered.files]
    facts = [facts_of_settings, sorted(columns or ()), covered.identity.fingerprint]
    if covered.collection.encoder is not None:  # without it, texts may not have been encoded
        facts.append(covered.collection.encoder)
    return {"recipe": _digest(facts), "files": _digest(shards), "rows": covered.rows}


def _digest(facts: list[Any]) -> str:
    text = json.dumps(facts, sort_keys=True).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=16).hexdigest()


@dataclass
class Earlier:
    """run_ids: builds of the same recipe that were killed, the last first. same_files: those that
    covered the very files. segments: what they have left, by `folders`. trained: by column,
    the plan and the file's content that are taken up."""

    folder: Folder
    dim: int
    run_ids: list[str]
    same_files: frozenset[str] = frozenset()
    segments: frozenset[str] = frozenset()
    trained: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    def find(cls, run: Run, dim: int) -> Earlier:
        """Of the recipe in the run's own record."""
        own = run.record.settings
        living = {other.id for other in run.others()}
        found = {
            record.id: record.settings
            for record in runs(run.folder)
            if record.state not in ("done", "failed", "stopped")
            and record.command == COMMAND
            and record.settings.get("recipe") == own["recipe"]
            and abs(record.settings.get("rows", 0) - own["rows"]) <= GROWN * own["rows"]
            and record.id not in living | {run.id}
        }
        same = {id for id, settings in found.items() if settings.get("files") == own["files"]}
        return cls(run.folder, dim, sorted(found, reverse=True), frozenset(same))

    def folders(self) -> set[str]:
        """The folders that may be taken up, as they are now."""
        segments = self.folder.folders(SEGMENTS) if self.run_ids else []
        kept = {name for name in segments if run_of_folder(name) in self.run_ids}
        # Those of a generation were taken up before; a build mends an index that is damaged.
        kept -= {f"{SEGMENTS}/{segment_id}" for segment_id in _in_generations(self.folder)}
        self.segments = frozenset(name.rpartition("/")[2] for name in kept)
        return kept | {f"{TRAINED}/{run_id}" for run_id in self.run_ids}

    def take_trained(self, column: str) -> tuple[Trained, Tried] | None:
        """What the segments of a column share, and what was measured for it; None where no build
        had come so far."""
        for run_id in self.run_ids:
            name = trained_file(run_id, column)
            where = display_name(self.folder.url_of(name))
            content = read_if_there(self.folder, name)
            if content is None:
                continue
            try:
                plan = Trained.plan_of(content, where)
                trained = Trained.from_bytes(content, plan, self.dim, where, "")
                tried = self._tried(run_id, column)
            except CollectionError:
                continue  # damaged: it is learned anew
            self.trained[column] = content
            return trained, tried
        return None

    def _tried(self, run_id: str, column: str) -> Tried:
        """Nothing where the build did not tune; CollectionError for a damaged file."""
        name = report_file(run_id, column)
        content = read_if_there(self.folder, name)
        if content is None:
            return Tried()
        return Tried.from_json(content, display_name(self.folder.url_of(name)))

    def take_segment(self, task: SegmentTask) -> Filled | None:
        """The whole segment of a task that an earlier build has written; None where there is
        none."""
        for run_id, record, checksum in self._whole:
            if (
                record.shards == task.shards
                and set(record.vectors) == set(task.plans)
                and self._has_same_trained(run_id, task.plans)
                and (run_id in self.same_files or self._has_same_json(record, task))
            ):
                entry = SegmentEntry(record.id, record.rows, checksum)
                return Filled(entry, dict(record.vectors))
        return None

    @functools.cached_property
    def _whole(self) -> list[tuple[str, SegmentRecord, FileSum]]:
        """The segments that can be read: their runs, the last first, records and checksums."""
        found: list[tuple[str, SegmentRecord, FileSum]] = []
        for segment_id in sorted(self.segments, reverse=True):
            name = segment_file(segment_id, "segment.json")
            content = read_if_there(self.folder, name)
            if content is None:
                continue
            with suppress(CollectionError):  # damaged: it is filled anew
                record = SegmentRecord.from_json(content, self.folder, name)
                found.append((segment_id.rpartition("-")[0], record, FileSum.of(content)))
        return found

    def _has_same_json(self, record: SegmentRecord, task: SegmentTask) -> bool:
        with suppress(CollectionError):  # damaged
            catalog = Segment(self.folder, record).catalog
            return catalog.schema.field("meta").type == task.schema.arrow_type()
        return False

    def _has_same_trained(self, run_id: str, plans: Mapping[str, Plan]) -> bool:
        return all(
            column in self.trained
            and read_if_there(self.folder, trained_file(run_id, column)) == self.trained[column]
            for column, plan in plans.items()
            if not plan.exact
        )


def _in_generations(folder: Folder) -> set[str]:
    found: set[str] = set()
    for number in numbers(folder):
        with suppress(CollectionError):
            found |= {entry.id for entry in read_manifest(folder, number).segments}
    return found

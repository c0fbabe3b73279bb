"""Builds an index: infers the json's types, plans, trains, writes segments, swaps the generation.

The Parquet files of all done shards come in, a new generation goes out. Memory is bounded by one
open segment, not by the collection: rows are read some row groups at a time, and a segment is
closed at the end of the shard that fills it. Segments are filled in this process or by others
(fill.py). Nothing live is changed before the last step, so a kill at any moment costs only the
work, and what it left is swept by the next build.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from chiasm.index.build.calibrations import store_calibrations
from chiasm.index.build.columns import TunedColumns
from chiasm.index.build.covered import CoveredShards, ShardReplaced, vector_counts
from chiasm.index.build.fill import Filled, SegmentTask, fill_segment, groups
from chiasm.index.build.propose import fitted_proposals, token_bytes, token_widths
from chiasm.index.build.report import Report
from chiasm.index.build.resume import COMMAND, Earlier, recipe_of
from chiasm.index.build.sampled_rows import all_replaced
from chiasm.index.build.samples import query_lines
from chiasm.index.plan import IndexSettings, Plan
from chiasm.index.segments import (
    FileSum,
    Manifest,
    SchemaInference,
    SegmentEntry,
    SharedFile,
    copied_columns,
    live_number,
    publish,
    remove_unnamed,
    report_file,
    sweep_published,
    sweeping,
    trained_file,
)
from chiasm.pipeline.collection import Collection, EmbeddingFile, Run
from chiasm.pipeline.errors import CollectionError, UsageError
from chiasm.pipeline.storage import display_name
from chiasm.pipeline.timing import Stopwatch

LOG = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]  # stage, rows done, rows in all
# Fills segments and yields what it made, in any order. The function is called with the rows that
# the segment at work has so far.
Fill = Callable[[Sequence[SegmentTask], Callable[[int], None]], Iterator[Filled]]


@dataclass(frozen=True)
class BuildSummary:
    """What a build made. `generation`: the number now live. `columns`: the plan of each column's
    index, `vectors`: how many it holds. `meta`: fields of the json whose types were widened.
    `seconds`: by stage. `reports`: what was measured, by column that was tuned. `unmeasured`: those
    columns whose rows are scored by 8-bit vectors, of which nobody measured what they lose.
    token_bytes: by column with tokens, those of a row that has some, in the mean."""

    generation: int
    rows: int
    shards: int
    segments: int
    columns: dict[str, str]
    vectors: dict[str, int]
    meta: list[dict[str, Any]]
    seconds: dict[str, float]
    reports: dict[str, Report] = field(default_factory=dict)
    unmeasured: list[str] = field(default_factory=list)
    token_bytes: dict[str, float] = field(default_factory=dict)


def build_index(
    path: str | Path,
    *,
    columns: Sequence[str] | None = None,
    settings: IndexSettings | None = None,
    progress: Progress = lambda stage, done, total: None,
    fill: Fill | None = None,
    encoder: str | None = None,
) -> BuildSummary:
    """Index a collection's embeddings and make that the live generation.

    columns: vector columns to index; None takes every one that has rows. progress: called with the
    stage, rows done and rows in all. fill: how segments are filled, None in this process, one after
    the other. encoder: as `open_collection` takes it. Raises UsageError for a column that does not
    exist or has no rows, and for a file of queries that cannot be used, CollectionError where there
    is nothing to index.
    """
    settings = settings or IndexSettings()
    collection = Collection.open(str(path), encoder)
    if settings.queries:
        query_lines(settings.queries)  # refused now rather than after the rows were read
    clock = Stopwatch()
    folder, covered = collection.folder, CoveredShards(collection)
    record = {**asdict(settings), **recipe_of(covered, settings, columns)}
    with Run(folder, COMMAND, record, make_room=partial(remove_unnamed, folder)) as run:
        build = Build(covered, run, settings, progress)
        with sweeping(run, settings, build.find_earlier):
            began_with = live_number(folder)
            with clock.stage("survey"):
                counts = build.infer_schema()
                selected = {name: counts[name] for name in select_columns(columns, counts)}
            with clock.stage("tune"):
                plans = build.choose(selected)
            with clock.stage("fill"):
                segments = build.write_segments(plans, fill or fill_here)
            with clock.stage("fit"):
                manifest = build.fit(build.manifest(plans, segments), clock.seconds)
            with clock.stage("calibrate"):
                manifest = build.calibrate(collection, manifest)
            with clock.stage("publish"):
                number = publish(folder, manifest, run, began_with)
                sweep_published(folder, run, settings)
            summary = build.summary(number, manifest, clock.seconds)
            run.finish("done", asdict(summary))
    return summary


def select_columns(columns: Sequence[str] | None, counts: dict[str, int]) -> list[str]:
    """The columns to index, in the order of `counts`, which says how many vectors each has."""
    for column in columns or ():
        if column not in counts:
            raise UsageError(
                f"column {column!r}",
                expected="one of " + ", ".join(counts),
                found="no such column",
            )
        if not counts[column]:
            usable = ", ".join(name for name, count in counts.items() if count)
            raise UsageError(f"column {column}", expected=f"one with rows: {usable}", found="none")
    return [name for name, count in counts.items() if count and (not columns or name in columns)]


class Build:
    """One build: the files it covers, the inferred json schema, the trained indexes. vectors: how
    many each column's index has."""

    def __init__(
        self, covered: CoveredShards, run: Run, settings: IndexSettings, progress: Progress
    ) -> None:
        self.folder, self.identity = covered.folder, covered.identity
        self.run, self.settings, self.progress = run, settings, progress
        self.covered = covered
        self.earlier = Earlier(self.folder, self.identity.dim, [])
        self.columns = TunedColumns(covered, settings)
        self.schema = SchemaInference()
        self.copied = copied_columns(self.identity.columns)
        self.shared: dict[str, SharedFile] = {}
        self.vectors: Counter[str] = Counter()
        self.rows_written = self._reported = 0
        self.numbered = 0  # segments that have got a number
        self.token_bytes: dict[str, float] = {}
        self._require_rows()

    def _require_rows(self) -> None:
        if not self.covered.rows:
            raise CollectionError(
                display_name(self.folder.url),
                expected="embedded rows",
                found=f"none in {len(self.covered.files)} shards",
                do="run chiasm embed first",
            )

    def infer_schema(self) -> dict[str, int]:
        """Read every json cell; returns how many rows each vector column has."""
        counts = dict.fromkeys(self.identity.columns, 0)
        covered, done = self.covered, 0
        for file in list(covered.files):
            try:
                with covered.replaced_errors(file):
                    for column, vectors in vector_counts(file, counts).items():
                        counts[column] += vectors
                for rows in covered.groups(file, ["json"]):
                    self.schema.add(rows["json"].to_pylist())
                    done += len(rows)
            except ShardReplaced:
                covered.files.remove(file)
                covered.put_off_shard(file)
            self.progress("survey", done, covered.rows)
        self.schema.finish()
        return counts

    def find_earlier(self) -> set[str]:
        """Look for builds of the same recipe that were killed; the folders that may be taken up."""
        self.earlier = Earlier.find(self.run, self.identity.dim)
        return self.earlier.folders()

    def choose(self, counts: dict[str, int]) -> dict[str, Plan]:
        """The plan of each column; what its segments share is learned and stored."""
        plans: dict[str, Plan] = {}
        self.columns.require_possible(counts)
        for column, rows in counts.items():
            self.progress(f"tune {column}", 0, rows)
            tuned = self.columns.choose(column, rows, self.earlier.take_trained(column))
            plans[column] = tuned.plan
            if tuned.trained is not None:
                if tuned.sets is not None:
                    name = report_file(self.run.id, column)  # `fit` puts the report there
                    self.folder.write_whole(name, tuned.tried.to_json(), self.run.id)
                self.store(column, tuned.trained.to_bytes())
            self.progress(f"tune {column}", rows, rows)
        queries, encoder = self.settings.queries, lambda: self.columns.encoder
        for column, content in fitted_proposals(self.covered, plans, queries, encoder):
            self.store(column, content)
        return plans

    def fit(self, manifest: Manifest, seconds: dict[str, float]) -> Manifest:
        """The manifest with the lists that a query scans; reports are stored."""
        self.progress("measure", 0, manifest.rows)
        self.columns.fit(manifest, seconds)
        self.token_bytes = token_bytes(self.folder, manifest)
        reports: dict[str, SharedFile] = {}
        for column, report in self.reports.items():
            name, content = report_file(self.run.id, column), report.to_json()
            self.folder.write_whole(name, content, self.run.id)
            reports[column] = SharedFile(name, FileSum.of(content))
        plans = {column: tuned.plan for column, tuned in self.columns.tuned.items()}
        return replace(manifest, columns=plans, reports=reports)

    def calibrate(self, collection: Collection, manifest: Manifest) -> Manifest:
        """The manifest with what says whether nothing here matches; of a tuned build alone, since
        captions are encoded."""
        if not self.settings.tune:
            return manifest
        self.progress("calibrate", 0, manifest.rows)
        encoder = lambda: self.columns.encoder  # noqa: E731
        stored = store_calibrations(collection, manifest, self.run.id, encoder)
        return replace(manifest, calibrations=stored)

    def summary(self, number: int, manifest: Manifest, seconds: dict[str, float]) -> BuildSummary:
        """number: of the generation that is live."""
        return BuildSummary(
            generation=number,
            rows=manifest.rows,
            shards=len(self.covered.indexed),
            segments=len(manifest.segments),
            columns={column: str(plan) for column, plan in manifest.columns.items()},
            vectors={column: self.vectors[column] for column in manifest.columns},
            meta=manifest.meta,
            seconds={stage: round(spent, 4) for stage, spent in seconds.items()},
            reports=self.reports,
            token_bytes=self.token_bytes,
            unmeasured=[
                column
                for column, plan in manifest.columns.items()
                if plan.vectors == "int8" and not self.columns.tuned[column].tried.small_vectors
            ],
        )

    @property
    def reports(self) -> dict[str, Report]:
        return {
            column: tuned.report
            for column, tuned in self.columns.tuned.items()
            if tuned.report is not None
        }

    def store(self, column: str, content: bytes) -> None:
        """Store what the segments of a column share."""
        name = trained_file(self.run.id, column)
        self.folder.write_whole(name, content, self.run.id)
        self.shared[column] = SharedFile(name, FileSum.of(content))

    def write_segments(
        self, plans: dict[str, Plan], fill: Fill, first: int = 0
    ) -> list[SegmentEntry]:
        """Write all segments; the shards that were replaced meanwhile come last. first: the number
        of the first one in the run."""
        segments: list[SegmentEntry] = []
        count = first
        for files in (self.covered.files, None):
            if files is None:
                files = list(self.covered.take_again(self.schema))
            tasks = self.tasks(count, files, plans)
            count = self.numbered = count + len(tasks)
            whole = {task.segment_id: self.earlier.take_segment(task) for task in tasks}
            left = [task for task in tasks if whole[task.segment_id] is None]
            for filled in chain(filter(None, whole.values()), fill(left, self._filling)):
                self.covered.put_off_ids(filled.replaced)
                self.vectors.update(filled.vectors)
                segments += [filled.entry] if filled.entry else []
                self.rows_written += filled.entry.rows if filled.entry else 0
                self._filling(0)
        for shard_id in self.covered.put_off:
            LOG.warning("shard %s is not in this index: it is embedded anew now", shard_id)
        if not segments:
            raise all_replaced(self.covered)
        return sorted(segments, key=lambda entry: (len(entry.id), entry.id))

    def _filling(self, rows: int) -> None:
        """rows: of the segment at work."""
        if rows or self.rows_written != self._reported:
            self._reported = self.rows_written + rows
            self.progress("fill", self._reported, self.covered.rows)

    def tasks(
        self, first: int, files: Iterable[EmbeddingFile], plans: dict[str, Plan]
    ) -> list[SegmentTask]:
        """One task for each segment; their numbers begin at `first`."""
        return [
            SegmentTask(
                url=self.folder.url,
                segment_id=f"{self.run.id}-{number:03d}",
                run_id=self.run.id,
                shards=tuple(self.covered.indexed[file.shard_id] for file in group),
                footers=tuple(file.footer for file in group),
                schema=self.schema,
                copied=tuple(self.copied),
                plans=plans,
                shared=self.shared,
                dim=self.identity.dim,
                batch_bytes=self.settings.batch_bytes,
                tokens=token_widths(self.identity, plans),
            )
            for number, group in enumerate(
                groups(files, self.settings.rows_of_segment(plans)), first
            )
        ]

    def manifest(self, plans: dict[str, Plan], segments: list[SegmentEntry]) -> Manifest:
        return Manifest(
            run=self.run.id,
            created=time.time(),
            encoder=self.identity.encoder,
            fingerprint=self.identity.fingerprint,
            dim=self.identity.dim,
            columns=plans,
            trained=self.shared,
            segments=tuple(segments),
            meta=self.schema.report(),
        )


def fill_here(tasks: Sequence[SegmentTask], filling: Callable[[int], None]) -> Iterator[Filled]:
    """Fill the segments one after the other, in this process."""
    for task in tasks:
        yield fill_segment(task, progress=filling)

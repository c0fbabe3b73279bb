"""Builds an index: infers the json's types, plans, trains, writes segments, swaps the generation.

The Parquet files of all done shards come in, a new generation goes out. Memory is bounded by one
open segment, not by the collection: rows are read by row group, and a segment is closed at the end
of the shard that fills it. Nothing live is changed before the last step, so a kill at any moment
costs only the work, and what it left is swept by the next build. The cost: an index is built anew,
not added to.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from chiasm.index.build.covered import CoveredShards, ShardReplaced, vector_counts
from chiasm.index.build.train import train
from chiasm.index.plan import IndexSettings, Plan, default_plan
from chiasm.index.segments import (
    FileSum,
    Manifest,
    SchemaInference,
    SegmentEntry,
    SegmentWriter,
    SharedFile,
    Trained,
    copied_columns,
    live_number,
    publish,
    remove_unnamed,
    sweep_published,
    sweeping,
    trained_file,
)
from chiasm.pipeline.collection import Collection, EmbeddingFile, Run, vectors_of
from chiasm.pipeline.errors import CollectionError, UsageError
from chiasm.pipeline.storage import display_name
from chiasm.pipeline.timing import Stopwatch

LOG = logging.getLogger(__name__)
TRAIN_GROUPS = 512  # row groups that training vectors are sampled from: varied, quick to read

Progress = Callable[[str, int, int], None]  # stage, rows done, rows in all


@dataclass(frozen=True)
class BuildSummary:
    """What a build made. `generation`: the number now live. `columns`: the plan of each
    column's index, `vectors`: how many it holds. `meta`: fields of the json whose types were
    widened. `seconds`: by stage."""

    generation: int
    rows: int
    shards: int
    segments: int
    columns: dict[str, str]
    vectors: dict[str, int]
    meta: list[dict[str, Any]]
    seconds: dict[str, float]


def build_index(
    path: str | Path,
    *,
    columns: Sequence[str] | None = None,
    settings: IndexSettings | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> BuildSummary:
    """Index a collection's embeddings and make that the live generation.

    columns: vector columns to index; None takes every one that has rows. progress: called with the
    stage, rows done and rows in all. Raises UsageError for a column that does not exist or has no
    rows, CollectionError where there is nothing to index.
    """
    settings = settings or IndexSettings()
    collection = Collection.open(str(path))
    clock = Stopwatch()
    folder, record = collection.folder, asdict(settings)
    with (
        Run(folder, "index build", record, make_room=partial(remove_unnamed, folder)) as run,
        sweeping(run, settings),
    ):
        began_with = live_number(folder)
        build = Build(collection, run, settings, progress)
        with clock.stage("survey"):
            counts = build.infer_schema()
        plans = {
            column: default_plan(counts[column], collection.identity.dim, settings)
            for column in select_columns(columns, counts)
        }
        with clock.stage("train"):
            build.train(plans)
        with clock.stage("fill"):
            segments = build.write_segments()
        with clock.stage("publish"):
            manifest = build.manifest(plans, segments)
            number = publish(folder, manifest, run, began_with)
            sweep_published(folder, run, settings)
        summary = BuildSummary(
            generation=number,
            rows=manifest.rows,
            shards=len(build.covered.indexed),
            segments=len(segments),
            columns={column: str(plan) for column, plan in plans.items()},
            vectors={column: build.vectors[column] for column in plans},
            meta=manifest.meta,
            seconds={stage: round(spent, 4) for stage, spent in clock.seconds.items()},
        )
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
        self, collection: Collection, run: Run, settings: IndexSettings, progress: Progress
    ) -> None:
        self.folder, self.identity = collection.folder, collection.identity
        self.run, self.settings, self.progress = run, settings, progress
        self.covered = CoveredShards(collection)
        self.schema = SchemaInference()
        self.copied = copied_columns(self.identity.columns)
        self.trained: dict[str, Trained | None] = {}  # by column, None where it is exact
        self.shared: dict[str, SharedFile] = {}
        self.vectors: Counter[str] = Counter()
        self.rows_written = 0
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

    def train(self, plans: dict[str, Plan]) -> None:
        """Learn what the segments of each column share, and store it."""
        for column, plan in plans.items():
            if plan.exact:
                self.trained[column] = None
                continue
            self.progress(f"train {column}", 0, plan.train_rows)
            sample = training_vectors(self.covered, column, plan.train_rows)
            self.store(column, train(plan, sample))
            self.progress(f"train {column}", plan.train_rows, plan.train_rows)

    def store(self, column: str, trained: Trained) -> None:
        """Store what the segments of a column share; what is used is what was stored."""
        name, content = trained_file(self.run.id, column), trained.to_bytes()
        self.folder.write_whole(name, content, self.run.id)
        self.shared[column] = SharedFile(name, FileSum.of(content))
        self.trained[column] = Trained.from_bytes(
            content, trained.plan, self.identity.dim, display_name(name), ""
        )

    def write_segments(self) -> list[SegmentEntry]:
        """Write all segments; the shards that were replaced meanwhile come last."""
        segments: list[SegmentEntry] = []
        for group in self.groups(self.covered.files):
            segments += self._write_segment(len(segments), group)
        for group in self.groups(list(self.covered.take_again(self.schema))):
            segments += self._write_segment(len(segments), group)
        for shard_id in self.covered.put_off:
            LOG.warning("shard %s is not in this index: it is embedded anew now", shard_id)
        if not segments:
            raise _all_replaced(self.covered)
        return segments

    def groups(self, files: Iterable[EmbeddingFile]) -> Iterator[list[EmbeddingFile]]:
        """Whole shards, in order, for one segment each."""
        group: list[EmbeddingFile] = []
        rows = 0
        for file in files:
            if rows and file.rows and rows + file.rows > self.settings.segment_rows:
                yield group
                group, rows = [], 0
            group.append(file)
            rows += file.rows
        if group:
            yield group

    def _write_segment(self, number: int, group: list[EmbeddingFile]) -> list[SegmentEntry]:
        """Write one segment from whole shards; none where no rows are left of them. Where a shard
        is replaced after some of its rows were taken, the segment is begun again without it."""
        rows_before = self.rows_written
        while True:
            try:
                return self._fill_segment(number, group)
            except ShardReplaced as replaced:
                group = [file for file in group if file is not replaced.file]
                self.covered.put_off_shard(replaced.file)
                self.rows_written = rows_before

    def _fill_segment(self, number: int, group: list[EmbeddingFile]) -> list[SegmentEntry]:
        group = [file for file in group if file.shard_id in self.covered.indexed]
        with SegmentWriter(
            self.folder,
            f"{self.run.id}-{number:03d}",
            self.run.id,
            shards=[self.covered.indexed[file.shard_id] for file in group],
            schema=self.schema,
            copied=self.copied,
            columns=self.trained,
            dim=self.identity.dim,
            batch_bytes=self.settings.catalog_bytes,
        ) as segment:
            for shard_number, file in enumerate(group):
                if self.covered.is_same(file):
                    self._add(segment, shard_number, file)
                else:
                    segment.leave_out(shard_number)
                    self.covered.put_off_shard(file)
            if not segment.rows:
                return []
            record, checksum = segment.commit()
        self.vectors.update(record.vectors)
        LOG.info("filled segment %s: %d rows of %d shards", record.id, record.rows, len(group))
        return [SegmentEntry(record.id, record.rows, checksum)]

    def _add(self, segment: SegmentWriter, shard_number: int, file: EmbeddingFile) -> None:
        first = 0
        for rows in self.covered.groups(file, [*self.copied, "json", *self.trained]):
            segment.add(shard_number, first, rows)
            first += len(rows)
            self.rows_written += len(rows)
            self.progress("fill", self.rows_written, self.covered.rows)

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


def training_vectors(covered: CoveredShards, column: str, wanted: int) -> np.ndarray:
    """About `wanted` vectors of a column, sampled from the whole collection: (n, D) float32.

    The same files give the same vectors. About TRAIN_GROUPS row groups are read, more where rows
    lack the column.
    """
    groups = [(file, number) for file in covered.files for number in _group_numbers(covered, file)]
    rng = np.random.default_rng(0)
    rng.shuffle(groups)
    per_group = math.ceil(wanted / max(1, min(len(groups), TRAIN_GROUPS)))
    samples: list[np.ndarray] = []
    rows = 0
    for file, number in groups:
        try:
            with covered.replaced_errors(file):
                (group,) = file.groups([column], [number])
        except ShardReplaced:
            continue
        vectors, has = vectors_of(group[column])
        sampled = rng.permutation(np.flatnonzero(has))[:per_group]
        samples.append(vectors[sampled].astype(np.float32))
        rows += len(sampled)
        if rows >= wanted:
            break
    if not samples:
        raise _all_replaced(covered)
    return np.concatenate(samples)


def _group_numbers(covered: CoveredShards, file: EmbeddingFile) -> range:
    try:
        with covered.replaced_errors(file):
            return range(file.group_count())
    except ShardReplaced:
        return range(0)


def _all_replaced(covered: CoveredShards) -> CollectionError:
    return CollectionError(
        display_name(covered.folder.url),
        expected="embedded rows",
        found="only shards that are embedded anew at this moment",
        do="run the same command again",
    )

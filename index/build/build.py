"""Builds an index: infers the json's types, plans, trains, writes segments, swaps the generation.

The Parquet files of all done shards come in, a new generation goes out. Memory is bounded by one
open segment, not by the collection: rows are read by row group, and a segment is closed at the end
of the shard that fills it. Nothing live is changed before the last step, so a kill at any moment
costs only the work. The cost: an index is built anew, not added to.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chiasm.index.faiss_runtime import load_faiss
from chiasm.index.plan import IndexSettings, Plan, plan_column
from chiasm.index.segments import (
    TRAINED,
    Digest,
    IndexedShard,
    Manifest,
    SchemaInference,
    SegmentEntry,
    SegmentWriter,
    TrainedEntry,
    build_command,
    copied_columns,
    publish,
    sweep,
)
from chiasm.pipeline.collection import (
    Collection,
    EmbeddingFile,
    Run,
    embedded_shard_ids,
    embeddings,
    file_version,
    parquet_name,
    vectors_of,
)
from chiasm.pipeline.errors import CollectionError, UsageError
from chiasm.pipeline.storage import display_name
from chiasm.pipeline.timing import Stopwatch

LOG = logging.getLogger(__name__)
TRAIN_GROUPS = 512  # row groups that training vectors are sampled from: varied, quick to read

Progress = Callable[[str, int, int], None]  # stage, rows done, rows in all


@dataclass(frozen=True)
class BuildSummary:
    """What a build made. `generation`: the number now live. `columns`: the FAISS factory string of
    each column's index, `vectors`: how many it holds. `meta`: fields of the json whose types were
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
    with Run(collection.folder, "index build", asdict(settings)) as run:
        build = Build(collection, run, settings, progress)
        with clock.stage("survey"):
            counts = build.infer_schema()
        plans = {
            column: plan_column(counts[column], settings)
            for column in select_columns(columns, counts)
        }
        with clock.stage("train"):
            build.train(plans)
        with clock.stage("fill"):
            segments = [
                build.write_segment(number, group) for number, group in enumerate(build.groups())
            ]
        with clock.stage("publish"):
            manifest = build.manifest(plans, segments)
            number = publish(collection.folder, manifest)
            sweep(collection.folder, run, settings)
        summary = BuildSummary(
            generation=number,
            rows=manifest.rows,
            shards=len(build.files),
            segments=len(segments),
            columns={column: plan.kind for column, plan in plans.items()},
            vectors={column: counts[column] for column in plans},
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
    """One build: the files it covers, the inferred json schema, the trained indexes."""

    def __init__(
        self, collection: Collection, run: Run, settings: IndexSettings, progress: Progress
    ) -> None:
        self.folder, self.identity = collection.folder, collection.identity
        self.run, self.settings, self.progress = run, settings, progress
        self.files: list[EmbeddingFile] = []
        self.indexed_shards: dict[str, IndexedShard] = {}
        self.schema = SchemaInference()
        self.copied = copied_columns(self.identity.columns)
        self.empty: dict[str, Any] = {}  # column -> the trained, empty index
        self.trained: dict[str, TrainedEntry] = {}
        self.rows_written = 0
        self._list_files()

    def _list_files(self) -> None:
        # Versions before footers: a file replaced in between then differs from its recorded
        # version.
        names = embedded_shard_ids(self.folder)
        shard_ids = self.folder.map_concurrent(lambda name: file_version(self.folder, name), names)
        versions = dict(zip(names, shard_ids, strict=True))
        for file in embeddings(self.folder):
            if file.footer.fingerprint != self.identity.fingerprint:
                raise CollectionError(
                    display_name(self.folder.url_of(parquet_name(file.shard_id))),
                    expected=f"rows of encoder {self.identity.encoder}",
                    found=f"rows of {file.footer.encoder} ({file.footer.fingerprint[:12]})",
                    do="embed the shard again, or into another collection",
                )
            version = versions.get(file.shard_id)
            if version is not None:
                source = file.footer.source
                self.files.append(file)
                self.indexed_shards[file.shard_id] = IndexedShard(
                    file.shard_id, file.edition, source.url, file.rows, *version
                )
        if not self.rows:
            raise CollectionError(
                display_name(self.folder.url),
                expected="embedded rows",
                found=f"none in {len(self.files)} shards",
                do="run chiasm embed first",
            )

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)

    def infer_schema(self) -> dict[str, int]:
        """Read every json cell; returns how many rows each vector column has."""
        counts = dict.fromkeys(self.identity.columns, 0)
        done = 0
        for file in self.files:
            for column, vectors in _vector_counts(file, counts).items():
                counts[column] += vectors
            for rows in file.groups(["json"]):
                self.schema.add(rows["json"].to_pylist())
                done += len(rows)
            self.progress("survey", done, self.rows)
        return counts

    def train(self, plans: dict[str, Plan]) -> None:
        """Make each column's empty index; those that need training learn from a sample of rows."""
        faiss = load_faiss()
        for column, plan in plans.items():
            if plan.exact:
                self.empty[column] = faiss.index_factory(
                    self.identity.columns[column], "IDMap2,Flat", faiss.METRIC_INNER_PRODUCT
                )
                continue
            self.progress(f"train {column}", 0, plan.train_rows)
            index = faiss.index_factory(
                self.identity.columns[column], plan.kind, faiss.METRIC_INNER_PRODUCT
            )
            index.train(training_vectors(self.files, column, plan.train_rows))
            name = f"{TRAINED}/{self.run.id}/{column}.faiss"
            with self.folder.create(name, self.run.id) as pending:
                digest = Digest(pending)
                faiss.write_index(index, faiss.PyCallbackIOWriter(digest.write))
                pending.commit()
            self.empty[column] = index
            self.trained[column] = TrainedEntry(name, digest.sum())
            self.progress(f"train {column}", plan.train_rows, plan.train_rows)

    def groups(self) -> Iterator[list[EmbeddingFile]]:
        """Whole shards, in order, for one segment each."""
        group: list[EmbeddingFile] = []
        rows = 0
        for file in self.files:
            if rows and file.rows and rows + file.rows > self.settings.segment_rows:
                yield group
                group, rows = [], 0
            group.append(file)
            rows += file.rows
        yield group

    def write_segment(self, number: int, group: list[EmbeddingFile]) -> SegmentEntry:
        """Write one segment from whole shards."""
        faiss = load_faiss()
        with SegmentWriter(
            self.folder,
            f"{self.run.id}-{number:03d}",
            self.run.id,
            shards=[self.indexed_shards[file.shard_id] for file in group],
            schema=self.schema,
            copied=self.copied,
            indexes={column: faiss.clone_index(empty) for column, empty in self.empty.items()},
            dim=self.identity.dim,
        ) as segment:
            for shard_number, file in enumerate(group):
                self._add(segment, shard_number, file)
            record, checksum = segment.commit()
        LOG.info("filled segment %s: %d rows of %d shards", record.id, record.rows, len(group))
        return SegmentEntry(record.id, record.rows, checksum)

    def _add(self, segment: SegmentWriter, shard_number: int, file: EmbeddingFile) -> None:
        first = 0
        for rows in file.groups([*self.copied, "json", *self.empty]):
            segment.add(shard_number, first, rows)
            first += len(rows)
            self.rows_written += len(rows)
            self.progress("fill", self.rows_written, self.rows)
        known = self.indexed_shards[file.shard_id]
        if first != file.rows or file_version(self.folder, file.shard_id) != known.file:
            raise CollectionError(
                display_name(self.folder.url_of(parquet_name(file.shard_id))),
                expected="the file that was there when the build began",
                found="another",
                do=f"run {build_command(self.folder)} again when chiasm embed has ended",
            )

    def manifest(self, plans: dict[str, Plan], segments: list[SegmentEntry]) -> Manifest:
        return Manifest(
            run=self.run.id,
            created=time.time(),
            encoder=self.identity.encoder,
            fingerprint=self.identity.fingerprint,
            dim=self.identity.dim,
            columns=plans,
            trained=self.trained,
            segments=tuple(segments),
            meta=self.schema.report(),
        )


def _vector_counts(file: EmbeddingFile, columns: Iterable[str]) -> Counter[str]:
    """How many rows of a Parquet file have each vector, from its statistics alone."""
    counts: Counter[str] = Counter()
    with file.open() as parquet:
        metadata = parquet.metadata
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for leaf in map(group.column, range(group.num_columns)):
            column = leaf.path_in_schema.partition(".")[0]
            if column in columns:
                counts[column] += group.num_rows - leaf.statistics.null_count
    return counts


def training_vectors(files: Sequence[EmbeddingFile], column: str, wanted: int) -> np.ndarray:
    """About `wanted` vectors of a column, sampled from the whole collection: (n, D) float32.

    The same files give the same vectors. About TRAIN_GROUPS row groups are read, more where rows
    lack the column.
    """
    groups = [(file, number) for file in files for number in range(file.group_count())]
    rng = np.random.default_rng(0)
    rng.shuffle(groups)
    per_group = math.ceil(wanted / min(len(groups), TRAIN_GROUPS))
    samples: list[np.ndarray] = []
    rows = 0
    for file, number in groups:
        (group,) = file.groups([column], [number])
        vectors, has = vectors_of(group[column])
        sampled = rng.permutation(np.flatnonzero(has))[:per_group]
        samples.append(vectors[sampled].astype(np.float32))
        rows += len(sampled)
        if rows >= wanted:
            break
    return np.concatenate(samples)

"""Builds an index: surveys the json, plans, trains once, fills segments, swaps the generation.

In come the Parquet files of all done shards, out goes a new generation. Memory is bounded by one
open segment, not by the collection: rows pass by row group, and a segment is closed at the end of
the shard that fills it. Nothing live is touched until the last step, so a kill at any moment costs
only the work. The cost of that: an index is built anew, not added to.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from chiasm.index.faiss_runtime import load_faiss
from chiasm.index.plan import IndexSettings, Plan, plan
from chiasm.index.segments import (
    COPIED,
    TRAINED,
    Digest,
    IndexedShard,
    Manifest,
    SegmentEntry,
    SegmentWriter,
    Survey,
    TrainedEntry,
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
from chiasm.pipeline.records import COLUMNS
from chiasm.pipeline.storage import display_name
from chiasm.pipeline.timing import Stopwatch

TRAIN_GROUPS = 512  # row groups the training vectors are drawn from: wide enough, and quick to read

Progress = Callable[[str, int, int], None]  # stage, rows done, rows in all


@dataclass(frozen=True)
class Built:
    """What a build made. `generation` is the number now live; `columns` the kind of each column's
    index and `vectors` how many it holds; `meta` tells what was widened; `seconds` by stage."""

    generation: int
    rows: int
    shards: int
    segments: int
    columns: dict[str, str]
    vectors: dict[str, int]
    meta: list[dict[str, Any]]
    seconds: dict[str, float]


def build_index(
    path: str,
    columns: Sequence[str] | None = None,
    settings: IndexSettings | None = None,
    *,
    progress: Progress = lambda stage, done, total: None,
) -> Built:
    """Index a collection's embeddings and make that the live generation.

    columns: vector columns to index; None takes every one that has rows. Raises UsageError for a
    column that does not exist or has no rows, CollectionError where there is nothing to index.
    """
    settings = settings or IndexSettings()
    collection = Collection.open(path)
    clock = Stopwatch()
    with Run(collection.folder, "index build", asdict(settings)) as run:
        build = Build(collection, run, settings, progress)
        with clock.stage("survey"):
            counts = build.survey_rows()
        plans = {
            column: plan(counts[column], settings) for column in select_columns(columns, counts)
        }
        with clock.stage("train"):
            build.train(plans)
        with clock.stage("fill"):
            segments = [build.fill(number, group) for number, group in enumerate(build.groups())]
        with clock.stage("publish"):
            manifest = build.manifest(plans, segments)
            number = publish(collection.folder, manifest)
            sweep(collection.folder, run, settings)
        built = Built(
            generation=number,
            rows=manifest.rows,
            shards=len(build.files),
            segments=len(segments),
            columns={column: made.kind for column, made in plans.items()},
            vectors={column: counts[column] for column in plans},
            meta=manifest.meta,
            seconds={stage: round(spent, 4) for stage, spent in clock.seconds.items()},
        )
        run.finish("done", asdict(built))
    return built


def select_columns(columns: Sequence[str] | None, counts: dict[str, int]) -> list[str]:
    """The columns to index, in the usual order."""
    for column in columns or ():
        if column not in COLUMNS:
            raise UsageError(
                f"column {column!r}", expected="one of " + ", ".join(COLUMNS), found="no such"
            )
        if not counts[column]:
            full = ", ".join(name for name in COLUMNS if counts[name])
            raise UsageError(f"column {column}", expected=f"one with rows: {full}", found="none")
    return [name for name in COLUMNS if counts[name] and (not columns or name in columns)]


class Build:
    """One build: the files it covers, what the survey found, the trained indexes."""

    def __init__(
        self, collection: Collection, run: Run, settings: IndexSettings, progress: Progress
    ) -> None:
        self.folder, self.identity = collection.folder, collection.identity
        self.run, self.settings, self.progress = run, settings, progress
        self.files: list[EmbeddingFile] = []
        self.covered: dict[str, IndexedShard] = {}
        self.survey = Survey()
        self.empty: dict[str, Any] = {}  # column -> the trained, empty index
        self.trained: dict[str, TrainedEntry] = {}
        self.filled = 0
        self._list_files()

    def _list_files(self) -> None:
        # Versions first: a file that is replaced after this differs from what its footer will say.
        names = embedded_shard_ids(self.folder)
        versions = self.folder.map_concurrent(lambda name: file_version(self.folder, name), names)
        seen = dict(zip(names, versions, strict=True))
        for file in embeddings(self.folder):
            if file.footer.fingerprint != self.identity.fingerprint:
                raise CollectionError(
                    display_name(self.folder.url_of(parquet_name(file.shard_id))),
                    expected=f"rows of encoder {self.identity.encoder}",
                    found=f"rows of {file.footer.encoder} ({file.footer.fingerprint[:12]})",
                    do="embed the shard again, or into another collection",
                )
            version = seen.get(file.shard_id)
            if version is not None:
                source = file.footer.source
                self.files.append(file)
                self.covered[file.shard_id] = IndexedShard(
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

    def survey_rows(self) -> dict[str, int]:
        """Look at every json; returns how many rows each vector column has."""
        counts = dict.fromkeys(COLUMNS, 0)
        done = 0
        for file in self.files:
            for column, held in _held(file).items():
                counts[column] += held
            for rows in file.groups(["json"]):
                self.survey.add(rows["json"].to_pylist())
                done += len(rows)
            self.progress("survey", done, self.rows)
        return counts

    def train(self, plans: dict[str, Plan]) -> None:
        """Make each column's empty index; those that need training learn from a sample of rows."""
        faiss = load_faiss()
        for column, made in plans.items():
            if made.exact:
                self.empty[column] = faiss.index_factory(
                    self.identity.dim, "IDMap2,Flat", faiss.METRIC_INNER_PRODUCT
                )
                continue
            self.progress(f"train {column}", 0, made.train_rows)
            index = faiss.index_factory(self.identity.dim, made.kind, faiss.METRIC_INNER_PRODUCT)
            index.train(training_vectors(self.files, column, made.train_rows))
            name = f"{TRAINED}/{self.run.id}/{column}.faiss"
            with self.folder.create(name, self.run.id) as pending:
                digest = Digest(pending)
                faiss.write_index(index, faiss.PyCallbackIOWriter(digest.write))
                pending.commit()
            self.empty[column] = index
            self.trained[column] = TrainedEntry(name, digest.sum())
            self.progress(f"train {column}", made.train_rows, made.train_rows)

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

    def fill(self, number: int, group: list[EmbeddingFile]) -> SegmentEntry:
        """Write one segment from whole shards."""
        faiss = load_faiss()
        with SegmentWriter(
            self.folder,
            f"{self.run.id}-{number:03d}",
            self.run.id,
            shards=[self.covered[file.shard_id] for file in group],
            survey=self.survey,
            indexes={column: faiss.clone_index(empty) for column, empty in self.empty.items()},
            dim=self.identity.dim,
        ) as segment:
            for place, file in enumerate(group):
                self._add(segment, place, file)
            record, checksum = segment.commit()
        return SegmentEntry(record.id, record.rows, checksum)

    def _add(self, segment: SegmentWriter, place: int, file: EmbeddingFile) -> None:
        first = 0
        for rows in file.groups([*COPIED, "json", *self.empty]):
            segment.add(place, first, rows)
            first += len(rows)
            self.filled += len(rows)
            self.progress("fill", self.filled, self.rows)
        known = self.covered[file.shard_id]
        if first != file.rows or file_version(self.folder, file.shard_id) != known.file:
            raise CollectionError(
                display_name(self.folder.url_of(parquet_name(file.shard_id))),
                expected="the file that was there when the build began",
                found="another",
                do="run chiasm index build again when chiasm embed has ended",
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
            meta=self.survey.report(),
        )


def _held(file: EmbeddingFile) -> Counter[str]:
    """How many rows of a Parquet file have each vector, from its statistics alone."""
    held: Counter[str] = Counter()
    with file.open() as parquet:
        metadata = parquet.metadata
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for leaf in map(group.column, range(group.num_columns)):
            column = leaf.path_in_schema.partition(".")[0]
            if column in COLUMNS:
                held[column] += group.num_rows - leaf.statistics.null_count
    return held


def training_vectors(files: Sequence[EmbeddingFile], column: str, wanted: int) -> np.ndarray:
    """About `wanted` vectors of a column, drawn from all over the collection: (n, D) float32.

    The same files give the same vectors. At most some TRAIN_GROUPS row groups are read, or as many
    more as it takes where rows lack the column.
    """
    groups = [(file, number) for file in files for number in range(file.group_count())]
    rng = np.random.default_rng(0)
    rng.shuffle(groups)
    share = math.ceil(wanted / min(len(groups), TRAIN_GROUPS))
    taken: list[np.ndarray] = []
    rows = 0
    for file, number in groups:
        (group,) = file.groups([column], [number])
        vectors, has = vectors_of(group[column])
        drawn = rng.permutation(np.flatnonzero(has))[:share]
        taken.append(vectors[drawn].astype(np.float32))
        rows += len(drawn)
        if rows >= wanted:
            break
    return np.concatenate(taken)

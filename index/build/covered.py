"""The embeddings that a build covers, each file as it was when the build began.

Shards may be embedded anew, or forgotten, while a build runs. A file that was replaced before its
rows were taken is put off to the end, where its new file is taken; one that is replaced again by
then, or whose json has other types, is left out. So a build never waits and never mixes two
editions, and what it publishes says which files it was built from.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pyarrow as pa

from chiasm.index.segments import EmbeddedShards, IndexedShard, SchemaInference
from chiasm.pipeline.collection import (
    Collection,
    EmbeddingFile,
    file_version,
    find_embedding,
    stored_parquet_name,
)
from chiasm.pipeline.errors import CollectionError, StorageError
from chiasm.pipeline.storage import display_name

LOG = logging.getLogger(__name__)


class ShardReplaced(Exception):
    """A shard's file was replaced while its rows were read."""

    def __init__(self, file: EmbeddingFile) -> None:
        super().__init__(file.shard_id)
        self.file = file


class CoveredShards:
    """Files of done shards. files: those to index, by shard id. put_off: shards whose files were
    replaced."""

    def __init__(self, collection: Collection) -> None:
        self.folder, self.identity = collection.folder, collection.identity
        self.indexed: dict[str, IndexedShard] = {}
        self.put_off: list[str] = []
        # Versions before footers: a file replaced in between differs from its recorded version.
        stats = EmbeddedShards.list(self.folder).stats
        found = self.folder.map_concurrent(lambda name: find_embedding(self.folder, name), stats)
        self.files = [file for file in found if file is not None]
        for file in self.files:
            stat = stats[file.shard_id]
            self._index(file, (stat.size, stat.version))

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)

    def _index(self, file: EmbeddingFile, version: tuple[int, str]) -> None:
        if file.footer.fingerprint != self.identity.fingerprint:
            raise CollectionError(
                display_name(self.folder.url_of(stored_parquet_name(self.folder, file.shard_id))),
                expected=f"rows of encoder {self.identity.encoder}",
                found=f"rows of {file.footer.encoder} ({file.footer.fingerprint[:12]})",
                do="embed the shard again, or into another collection",
            )
        url = file.footer.source.url
        self.indexed[file.shard_id] = IndexedShard(
            file.shard_id, file.edition, url, file.rows, *version
        )

    def is_same(self, file: EmbeddingFile) -> bool:
        """Whether the file is still the one that was there when it was listed."""
        return file_version(self.folder, file.shard_id) == self.indexed[file.shard_id].file

    @contextmanager
    def replaced_errors(self, file: EmbeddingFile) -> Iterator[None]:
        """ShardReplaced in place of an error that comes from the file's having been replaced."""
        try:
            yield
        except (CollectionError, StorageError) as error:
            if self.is_same(file):
                raise
            raise ShardReplaced(file) from error

    def groups(self, file: EmbeddingFile, columns: list[str]) -> Iterator[pa.Table]:
        """Columns of a file, row group by row group; ShardReplaced, at the end or before it, where
        the file is not the one that was listed."""
        rows = 0
        with self.replaced_errors(file):
            for group in file.groups(columns):
                rows += len(group)
                yield group
        if rows != file.rows or not self.is_same(file):
            raise ShardReplaced(file)

    def group_numbers(self, file: EmbeddingFile) -> range:
        """The numbers of a file's row groups; none where it was replaced."""
        try:
            with self.replaced_errors(file):
                return range(file.group_count())
        except ShardReplaced:
            return range(0)

    def put_off_shard(self, file: EmbeddingFile) -> None:
        """Its rows are taken at the end, from its new file."""
        LOG.info("shard %s was embedded anew while it was indexed", file.shard_id)
        self.put_off.append(file.shard_id)
        del self.indexed[file.shard_id]

    def take_again(self, schema: SchemaInference) -> Iterator[EmbeddingFile]:
        """The new files of the shards that were put off, of those whose json has the types of
        `schema`."""
        again, self.put_off = self.put_off, []
        for shard_id in again:
            version = file_version(self.folder, shard_id)
            file = None if version is None else find_embedding(self.folder, shard_id)
            if file is None or version is None:
                continue  # forgotten, or not done
            self._index(file, version)
            try:
                cells = [cell for rows in self.groups(file, ["json"]) for cell in _cells(rows)]
            except ShardReplaced:
                self.leave_out(file, "it is embedded anew again and again")
                continue
            if schema.covers(cells):
                yield file
            else:
                self.leave_out(file, "its json has other types than before")

    def leave_out(self, file: EmbeddingFile, why: str) -> None:
        LOG.warning("shard %s is not in this index: %s", file.shard_id, why)
        self.indexed.pop(file.shard_id, None)


def vector_counts(file: EmbeddingFile, columns: Iterable[str]) -> Counter[str]:
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


def _cells(rows: pa.Table) -> list[str | None]:
    return rows["json"].to_pylist()

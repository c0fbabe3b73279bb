"""The embeddings that a build covers, each file as it was when the build began.

Shards may be embedded anew, or forgotten, while a build runs. A file that was replaced before its
rows were taken is put off to the end, where its new file is taken; one that is replaced again by
then, or whose json has other types, is left out. So a build never waits and never mixes two
editions, and what it publishes says which files it was built from.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection as Names
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from chiasm.index.segments import EmbeddedShards, IndexedShard, SchemaInference
from chiasm.pipeline.collection import (
    Collection,
    EmbeddingFile,
    file_version,
    find_embedding,
    stored_parquet_name,
)
from chiasm.pipeline.errors import CollectionError, StorageError
from chiasm.pipeline.storage import Folder, display_name

LOG = logging.getLogger(__name__)
READ_BYTES = 8 << 20  # of row groups that are read together


class ShardReplaced(Exception):
    """A shard's file was replaced while its rows were read."""

    def __init__(self, file: EmbeddingFile) -> None:
        super().__init__(file.shard_id)
        self.file = file


@dataclass(frozen=True)
class OpenedFile:
    """A Parquet file whose footer was read. ranges: row groups to read together."""

    file: EmbeddingFile
    metadata: pq.FileMetaData
    ranges: tuple[range, ...]

    def reads(self) -> Iterator[tuple[OpenedFile, int, range]]:
        """Each range with the number of its first row."""
        first = 0
        for groups in self.ranges:
            yield self, first, groups
            first += sum(self.metadata.row_group(number).num_rows for number in groups)


class ReadFiles:
    """Files that are read as they were listed. indexed: by shard id, as they were then."""

    def __init__(self, folder: Folder, indexed: dict[str, IndexedShard]) -> None:
        self.folder, self.indexed = folder, indexed

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

    def open(self, file: EmbeddingFile, columns: Names[str], most: int) -> OpenedFile:
        """Read the footer. most: bytes of these columns that are read together, or a row group."""
        with self.replaced_errors(file), file.open() as parquet:
            metadata = parquet.metadata
        if metadata.num_rows != file.rows or not self.is_same(file):
            raise ShardReplaced(file)
        sizes = [
            sum(leaf.total_uncompressed_size for leaf in leaves_of(metadata, group, columns))
            for group in range(metadata.num_row_groups)
        ]
        return OpenedFile(file, metadata, tuple(ranges_of(sizes, most)))

    def read(self, opened: OpenedFile, columns: list[str], groups: range) -> pa.Table:
        """These row groups. They can be trusted once the file is found to be the same after
        that."""
        with self.replaced_errors(opened.file):
            return opened.file.read_groups(columns, groups, opened.metadata)

    def require_same(self, files: Iterable[EmbeddingFile]) -> None:
        """Raises ShardReplaced where one of the files is not the one that was listed."""
        stats = EmbeddedShards.list(self.folder).stats
        for file in files:
            stat = stats.get(file.shard_id)
            if stat is None or (stat.size, stat.version) != self.indexed[file.shard_id].file:
                raise ShardReplaced(file)

    def groups(self, file: EmbeddingFile, columns: list[str]) -> Iterator[pa.Table]:
        """Columns of a file, some row groups at a time; ShardReplaced, at the end or before it,
        where the file is not the one that was listed."""
        for opened, _, groups in self.open(file, columns, READ_BYTES).reads():
            yield self.read(opened, columns, groups)
        if not self.is_same(file):
            raise ShardReplaced(file)


class CoveredShards(ReadFiles):
    """Files of done shards. files: those to index, by shard id. put_off: shards whose files were
    replaced."""

    def __init__(
        self,
        collection: Collection,
        embedded: EmbeddedShards | None = None,
        only: Set[str] | None = None,
    ) -> None:
        """embedded: the files, None to list them. only: the ids of the shards to index, None for
        all."""
        super().__init__(collection.folder, {})
        self.collection, self.identity = collection, collection.identity
        self.put_off: list[str] = []
        # Versions before footers: a file replaced in between differs from its recorded version.
        stats = (embedded or EmbeddedShards.list(self.folder)).stats
        if only is not None:
            stats = {name: stat for name, stat in stats.items() if name in only}
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

    def put_off_shard(self, file: EmbeddingFile) -> None:
        """Its rows are taken at the end, from its new file."""
        self.put_off_ids([file.shard_id])

    def put_off_ids(self, shard_ids: Iterable[str]) -> None:
        """Shards that were embedded anew while they were indexed."""
        for shard_id in shard_ids:
            LOG.info("shard %s was embedded anew while it was indexed", shard_id)
            self.put_off.append(shard_id)
            del self.indexed[shard_id]

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


def vector_counts(file: EmbeddingFile, columns: Names[str]) -> Counter[str]:
    """How many rows of a Parquet file have each vector, from its statistics alone."""
    counts: Counter[str] = Counter()
    with file.open() as parquet:
        metadata = parquet.metadata
    for number in range(metadata.num_row_groups):
        rows = metadata.row_group(number).num_rows
        for leaf in leaves_of(metadata, number, columns):
            counts[leaf.path_in_schema.partition(".")[0]] += rows - leaf.statistics.null_count
    return counts


def leaves_of(
    metadata: pq.FileMetaData, number: int, columns: Names[str]
) -> Iterator[pq.ColumnChunkMetaData]:
    """The column chunks of a row group that belong to these columns."""
    group = metadata.row_group(number)
    for leaf in map(group.column, range(group.num_columns)):
        if leaf.path_in_schema.partition(".")[0] in columns:
            yield leaf


def ranges_of(sizes: Sequence[int], most: int) -> Iterator[range]:
    """Ranges of row groups of these sizes in bytes, each of `most` bytes at most or a single
    one."""
    start = total = 0
    for number, size in enumerate(sizes):
        if number > start and total + size > most:
            yield range(start, number)
            start, total = number, 0
        total += size
    if start < len(sizes):
        yield range(start, len(sizes))


def _cells(rows: pa.Table) -> list[str | None]:
    return rows["json"].to_pylist()

"""A segment: an immutable piece of the index, written once, memory-mapped ever after.

    index/segments/<id>/rows.arrow      the catalog: key, caption, metadata, ... of each position
                        keywords.arrow  which rows have a term in their captions
                        image.f16       the raw vectors, (rows, dim) float16, zero where none is
                        image.lists     codes of the vectors, list by list, for FAISS (lists.py)
                        image.sizes     sizes and checksums of the lists
                        rows.arrow.blocks, image.f16.blocks   checksums of parts (blocks.py)
                        segment.json    its shards, size and checksum of each file; written last

Positions are 0 .. rows - 1 inside a segment. Rows without a vector in a column are in none of its
lists. An exact column has no lists: its vectors are scanned. `segment.json` is written last and its
own checksum stands in the generation, so that a chain of checksums runs from the live generation to
every byte it answers from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from io import BufferedReader
from typing import Any

import numpy as np
import pyarrow as pa

from chiasm.index.results import CatalogRow
from chiasm.index.segments.advice import build_command
from chiasm.index.segments.blocks import VectorBlocks
from chiasm.index.segments.catalog import Catalog, CatalogParts, CatalogWriter, IndexedShard
from chiasm.index.segments.checksums import Digest, FileSum
from chiasm.index.segments.files import SegmentFiles
from chiasm.index.segments.json_columns import SchemaInference
from chiasm.index.segments.keywords import Keywords, KeywordWriter
from chiasm.index.segments.lists import ListSizes, ListsWriter, open_exact, open_lists
from chiasm.index.segments.manifest import Deletions
from chiasm.index.segments.names import CATALOG, KEYWORDS, RECORD, blocks_file, segment_file
from chiasm.index.segments.partial import Wanted, gone
from chiasm.index.segments.record import SegmentRecord
from chiasm.index.segments.trained import Trained
from chiasm.pipeline.collection import vectors_of
from chiasm.pipeline.errors import CollectionError, StorageError
from chiasm.pipeline.storage import Folder, PendingFile, Stat, display_name


class SegmentWriter:
    """Writes a segment from Parquet rows; `commit` gives its files their names. Used in a `with`,
    which leaves no temporary behind. shards: those whose rows may come, in this order. copied: the
    catalog's `copied_columns`. columns: for each vector column what its segments share, None where
    it is exact. batch_bytes: as the catalog's writer takes it. capacity: how many rows may come.
    """

    def __init__(
        self,
        folder: Folder,
        segment_id: str,
        run_id: str,
        *,
        shards: Sequence[IndexedShard],
        schema: SchemaInference,
        copied: Sequence[str],
        columns: dict[str, Trained | None],
        dim: int,
        batch_bytes: int,
        capacity: int,
    ) -> None:
        self.id, self.dim, self.rows = segment_id, dim, 0
        self._folder, self._run_id = folder, run_id
        self._shards = dict(enumerate(shards))
        self._lists = {
            column: None if trained is None else ListsWriter(trained, capacity)
            for column, trained in columns.items()
        }
        self._vectors = dict.fromkeys(columns, 0)
        self._blocks = {column: VectorBlocks(dim) for column in columns}
        self._files: dict[str, tuple[PendingFile, Digest]] = {}
        with ExitStack() as self._stack:  # closes the first files where a later one fails
            self._raw = {column: self._create(f"{column}.f16") for column in columns}
            catalog, keywords = self._create(CATALOG), self._create(KEYWORDS)
            self._stack = self._stack.pop_all()
        self._catalog = CatalogWriter(catalog, shards, schema, copied, batch_bytes)
        self._keywords = KeywordWriter(keywords)

    def __enter__(self) -> SegmentWriter:
        return self

    def __exit__(self, *raised: Any) -> None:
        self._stack.__exit__(*raised)

    def add(self, shard: int, first: int, rows: pa.Table) -> None:
        """Take consecutive rows of the shard at `shards[shard]`, the first being its row
        `first`."""
        self._catalog.add(shard, first, rows)
        self._keywords.add(rows)
        for column in self._lists:
            self._add_vectors(column, *vectors_of(rows[column]))
        self.rows += len(rows)

    def copy(self, shard: int, rows: pa.Table, vectors: dict[str, np.ndarray]) -> None:
        """Take rows of another segment, of the shard at `shards[shard]`: its catalog's, as
        `CatalogWriter.copy` takes them, and of each column its vectors (n, D) float16, zero where a
        row has none."""
        self._catalog.copy(shard, rows)
        self._keywords.add(rows)
        for column, copied in vectors.items():
            self._add_vectors(column, copied, np.any(copied, axis=1))
        self.rows += len(rows)

    def _add_vectors(self, column: str, vectors: np.ndarray, has: np.ndarray) -> None:
        data = vectors.tobytes()
        self._raw[column].write(data)
        self._blocks[column].add(data)
        self._vectors[column] += int(has.sum())
        if (lists := self._lists[column]) is not None:
            lists.add(vectors[has], self.rows + np.flatnonzero(has))

    def commit(self) -> tuple[SegmentRecord, FileSum]:
        """Name every file, `segment.json` last; returns the record and its checksum."""
        self._catalog.close()
        self._create(blocks_file(CATALOG)).write(self._catalog.blocks.to_bytes())
        for column, blocks in self._blocks.items():
            self._create(blocks_file(f"{column}.f16")).write(blocks.to_bytes())
        self._keywords.close()
        for column, lists in self._lists.items():
            if lists is not None:
                lists.write(self._create(f"{column}.lists"), self._create(f"{column}.sizes"))
        for pending, _ in self._files.values():
            pending.commit()
        record = SegmentRecord(
            id=self.id,
            rows=self.rows,
            dim=self.dim,
            vectors=self._vectors,
            shards=tuple(self._shards.values()),
            files={name: digest.sum() for name, (_, digest) in sorted(self._files.items())},
        )
        content = record.to_json()
        self._folder.write_whole(segment_file(self.id, RECORD), content, self._run_id)
        return record, FileSum.of(content)

    def _create(self, name: str) -> Digest:
        pending = self._folder.create(segment_file(self.id, name), self._run_id)
        self._stack.enter_context(pending)
        digest = Digest(pending)
        self._files[name] = pending, digest
        return digest


class Segment:
    """A committed segment, open for searching. Files are compared with their checksums and mapped
    when first used; safe to share. deletions: of rows that searches leave out.

    Of a segment in a store the parts that a search needs are requested; the `wanted_` methods say
    which, so that those of several segments are one round. Without parts of it, a file is copied
    whole: by `catalog` and `raw`, and where it has no checksums of its blocks.

    Using a file raises CollectionError where it is damaged, SegmentGone where it was removed."""

    def __init__(
        self,
        folder: Folder,
        record: SegmentRecord,
        deletions: Deletions | None = None,
        files: SegmentFiles | None = None,
    ) -> None:
        """files: those of the same segment that are open already."""
        self.record, self.deletions = record, deletions
        self._folder = folder
        self._files = SegmentFiles(folder, record) if files is None else files
        self._deleted: np.ndarray | None = None

    def with_deletions(self, deletions: Deletions | None) -> Segment:
        """The same segment in another generation; the two share what either has open."""
        if deletions == self.deletions:
            return self
        return Segment(self._folder, self.record, deletions, self._files)

    def __len__(self) -> int:
        return self.record.rows

    @property
    def in_store(self) -> bool:
        """Whether parts of its files have to be requested before they are read."""
        return self._files.in_store

    def loading(self, column: str, exact: bool) -> list[Callable[[], object]]:
        """What reads the small files that searches of a column need, and all of an exact one; for a
        segment in a store, where each is a request."""
        if not self._files.in_store:
            return []
        if exact:
            return [self.deleted, lambda: self._files.parts(CATALOG), lambda: self.raw(column)]
        names = CATALOG, f"{column}.f16"
        reading = [partial(self._files.parts, name) for name in names]
        return [self.deleted, *reading, lambda: self._files.read(f"{column}.sizes")]

    @property
    def catalog(self) -> Catalog:
        return self._files.open_once(
            CATALOG, lambda file, where, rebuild: Catalog(file, where, rebuild, self.record.rows)
        )

    def rows(self, numbers: Sequence[int]) -> dict[int, CatalogRow]:
        """The rows of the catalog of these numbers."""
        parts = self._files.parts(CATALOG)
        return (self.catalog if parts is None else CatalogParts(parts)).rows(numbers)

    def wanted_rows(self, numbers: Sequence[int] | np.ndarray) -> list[Wanted]:
        """The parts that `rows` reads."""
        parts = self._files.parts(CATALOG)
        return [] if parts is None else [(parts, CatalogParts(parts).blocks_of(numbers))]

    @property
    def keywords(self) -> Keywords:
        """Raises CollectionError where the index was built without them."""
        if KEYWORDS not in self.record.files:
            raise CollectionError(
                display_name(self._folder.url),
                expected="an index with keywords",
                found="one of an earlier version, without them",
                do=f"run {build_command(self._folder)}",
            )
        return self._files.open_once(
            KEYWORDS, lambda file, where, rebuild: Keywords(file, where, rebuild, self.record.rows)
        )

    def exact(self, column: str) -> Any:
        """A FAISS index of one list that scans all vectors of a column, those of zeros too where a
        row has none. To be searched with `store_pairs`; shared: a search must not change it."""
        rows, dim = self.record.rows, self.record.dim
        return self._files.open_once(
            f"{column}.f16",
            lambda file, where, rebuild: open_exact(file, rows, dim, where),
            "exact",
        )

    def lists(self, column: str, trained: Trained) -> Any:
        """The FAISS index of a column's lists, mapped. Shared: a search must not change it. Only
        lists that were fetched may be scanned, see `wanted_lists`."""
        sizes = self._list_sizes(column, trained)
        size = self.record.files[f"{column}.lists"].size

        def opened(file: BufferedReader, where: str, rebuild: str) -> Any:
            return open_lists(file, size, sizes, trained, where, rebuild)

        return self._files.open_once(f"{column}.lists", opened, divided=sizes.blocks)

    def wanted_lists(
        self, column: str, trained: Trained, lists: np.ndarray | None = None
    ) -> list[Wanted]:
        """The parts that a scan of these lists reads, None for all."""
        if not self._files.in_store:
            return []
        parts = self._files.parts(f"{column}.lists", self._list_sizes(column, trained).blocks)
        lists = np.arange(trained.plan.lists) if lists is None else lists
        return [] if parts is None else [(parts, lists)]

    def vectors(self, column: str) -> np.ndarray:
        """As `raw`, but only rows that were fetched may be read, see `wanted_vectors`."""
        parts = self._files.parts(f"{column}.f16") if self.in_store else None
        if parts is None:
            return self.raw(column)
        return self._files.once((column, "parts"), lambda: self._map_vectors(parts.file))

    def wanted_vectors(self, column: str, rows: np.ndarray) -> list[Wanted]:
        """The parts of a column's vectors that have these rows."""
        parts = self._files.parts(f"{column}.f16")
        if parts is None:
            return []
        starts = rows * (2 * self.record.dim)
        return [(parts, np.searchsorted(parts.blocks.offsets, starts, side="right") - 1)]

    def raw(self, column: str) -> np.ndarray:
        """(rows, dim) float16, mapped, zero where a row has no vector."""
        return self._files.open_once(f"{column}.f16", lambda file, *_: self._map_vectors(file))

    def _map_vectors(self, file: Any) -> np.ndarray:
        shape = (self.record.rows, self.record.dim)
        # As a plain array: `memmap` costs microseconds an access.
        return np.memmap(file, "<f2", "r", shape=shape).view(np.ndarray)

    def _list_sizes(self, column: str, trained: Trained) -> ListSizes:
        name = f"{column}.sizes"
        return self._files.once(
            (name, "read"),
            lambda: ListSizes(
                self._files.read(name),
                trained.plan.lists,
                trained.plan.code_size,
                display_name(self._folder.url_of(segment_file(self.record.id, name))),
                build_command(self._folder),
            ),
        )

    def has(self, column: str) -> np.ndarray | None:
        """Which rows have a vector in a column: (rows,) bool; None where all have."""
        if self.record.vectors[column] == self.record.rows:
            return None
        return self._files.once((column, "has"), lambda: np.any(self.raw(column), axis=1))

    def deleted(self) -> np.ndarray | None:
        """Which rows searches leave out: (rows,) bool; None where there are none."""
        deletions = self.deletions
        if deletions is None:
            return None
        if self._deleted is None:  # two threads may both read it, to the same end
            where = display_name(self._folder.url_of(deletions.file))
            bits = np.frombuffer(self._read(deletions.file, deletions.checksum, where), np.uint8)
            deleted = np.unpackbits(bits, bitorder="little")[: len(self)].astype(bool)
            if len(deleted) != len(self) or int(deleted.sum()) != deletions.rows:
                raise CollectionError(
                    where,
                    expected=f"{deletions.rows} deleted of {len(self)} rows",
                    found=f"{int(deleted.sum())} of {len(deleted)}",
                    do=f"run {build_command(self._folder)}",
                )
            self._deleted = deleted
        return self._deleted

    def _read(self, name: str, checksum: FileSum, where: str) -> bytes:
        """The content of a small file, compared at every reading: remembering what was right would
        cost as much."""
        try:
            content = self._folder.read_bytes(name)
        except StorageError:
            if self._folder.stat(name) is None:
                raise gone(self._folder, where) from None
            raise
        if (found := FileSum.of(content)) != checksum:
            raise CollectionError(
                where,
                expected=f"checksum {checksum.blake2b}, {checksum.size} bytes",
                found=f"{found.blake2b}, {found.size} bytes",
                do=f"run {build_command(self._folder)}",
            )
        return content

    def missing_files(self, stats: dict[str, Stat]) -> list[str]:
        """The names of files that are not there with their sizes. stats: of its folder."""
        missing: list[str] = []
        for base, checksum in self.record.files.items():
            name = segment_file(self.record.id, base)
            found = stats.get(name) or self._folder.stat(name)  # a listing may be late
            if found is None or found.size not in (checksum.size, -1):
                missing.append(name)
        return missing

"""A segment: an immutable piece of the index, written once, memory-mapped ever after.

    index/segments/<id>/rows.arrow      the catalog: key, caption, metadata, ... of each position
                        keywords.arrow  which rows have a term in their captions
                        image.f16       the vectors, (rows, dim) float16, zero where none is; or
                        image.i8        the same in 8 bits a number (vector_files.py); or
                        image.source    digests of those in Parquet files (parquet_vectors.py)
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

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from io import BufferedReader
from typing import Any

import numpy as np

from chiasm.index.results import CatalogRow
from chiasm.index.segments.advice import build_command
from chiasm.index.segments.catalog import Catalog, CatalogParts
from chiasm.index.segments.checksums import FileSum
from chiasm.index.segments.files import SegmentFiles
from chiasm.index.segments.keywords import Keywords
from chiasm.index.segments.lists import ListSizes, coded_rows, open_exact, open_lists
from chiasm.index.segments.manifest import Deletions
from chiasm.index.segments.names import CATALOG, KEYWORDS, segment_file
from chiasm.index.segments.parquet_vectors import ParquetVectors
from chiasm.index.segments.partial import Parts, Wanted, fetch, gone
from chiasm.index.segments.record import SegmentRecord
from chiasm.index.segments.token_files import SegmentTokens
from chiasm.index.segments.trained import Trained
from chiasm.index.segments.vector_files import FORMS, StoredVectors
from chiasm.pipeline.errors import CollectionError, StorageError
from chiasm.pipeline.storage import Folder, Stat, display_name


class Segment:
    """A committed segment, open for searching. Files are compared with their checksums and mapped
    when first used; safe to share. deletions: of rows that searches leave out.

    Of a segment in a store the parts that a search needs are requested, of a large one here they
    are verified; the `wanted_` methods say which, so that those of several segments are one round.
    Without parts of it, a file is copied or verified whole: by `catalog` and `raw`, and where it
    has no checksums of its blocks.

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

    def unopened(self) -> Segment:
        """The same segment, of which nothing is in memory."""
        return Segment(self._folder, self.record, self.deletions)

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
        stored = self.record.vectors_file(column)
        if exact:
            return [self.deleted, lambda: self._files.parts(CATALOG), lambda: self.raw(column)]
        opened = partial(self._files.parts, stored)
        if self.record.form(column) is None:
            opened = partial(self.raw, column)
        sizes = partial(self._files.read, f"{column}.sizes")
        return [self.deleted, partial(self._files.parts, CATALOG), opened, sizes]

    @property
    def catalog(self) -> Catalog:
        return self._files.open_once(
            CATALOG, lambda file, where, rebuild: Catalog(file, where, rebuild, self.record.rows)
        )

    def rows(self, numbers: Sequence[int]) -> dict[int, CatalogRow]:
        """The rows of the catalog of these numbers."""
        parts = self._files.parts(CATALOG)
        if parts is None or parts.complete:  # mapped, without a copy of the parts
            return self.catalog.rows(numbers)
        return CatalogParts(parts).rows(numbers)

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

    def lists(self, column: str, trained: Trained) -> Any:
        """The FAISS index of a column's lists, mapped. Shared: a search must not change it. Only
        lists that were fetched may be scanned, see `wanted_lists`."""
        sizes = self.list_sizes(column, trained)
        size = self.record.files[f"{column}.lists"].size

        def opened(file: BufferedReader, where: str, rebuild: str) -> Any:
            return open_lists(file, size, sizes, trained, where, rebuild)

        return self._files.open_once(f"{column}.lists", opened, divided=sizes.blocks)

    def each_list(self, column: str, trained: Trained) -> Iterator[memoryview]:
        """The bytes of every list in order, each verified; of a segment on this machine."""
        blocks = self.list_sizes(column, trained).blocks
        return self._files.local_parts(f"{column}.lists", blocks).in_order()

    def wanted_lists(
        self, column: str, trained: Trained, lists: np.ndarray | None = None
    ) -> list[Wanted]:
        """The parts that a scan of these lists reads, None for all."""
        parts = self._files.parts(f"{column}.lists", self.list_sizes(column, trained).blocks)
        lists = np.arange(trained.plan.lists) if lists is None else lists
        return [] if parts is None else [(parts, lists)]

    def vectors(self, column: str) -> StoredVectors | ParquetVectors:
        """As `raw`, but only rows that were fetched may be read, see `wanted_vectors`."""
        if self._vector_parts(column) is None:
            return self.raw(column)
        return self._files.once((column, "parts"), lambda: self._map_parts(column))

    def _vector_parts(self, column: str) -> Parts | None:
        """Of the file of a column's vectors; None where it is used whole, or there is none."""
        return self._files.once((column, "vector parts"), lambda: self._open_parts(column))

    def _open_parts(self, column: str) -> Parts | None:
        form, name = self.record.form(column), self.record.vectors_file(column)
        return None if form is None else self._files.parts(name)

    def _map_parts(self, column: str) -> StoredVectors:
        form, parts = self.record.form(column), self._vector_parts(column)
        assert form is not None and parts is not None
        return form.map(parts.file, self.record.rows, self.record.dim)

    def keep_open(self, column: str) -> None:
        """Open what the results of a column need, so that a sweep cannot take it."""
        self.vectors(column)
        if self._files.parts(CATALOG) is None:
            _ = self.catalog

    def is_whole(self, column: str, trained: Trained | None) -> bool:
        """Whether nothing of a column's vectors has to be fetched. trained: nor of its lists."""
        parts = [self._vector_parts(column)]
        if trained is not None:
            blocks = self.list_sizes(column, trained).blocks
            parts.append(self._files.parts(f"{column}.lists", blocks))
        return not self.in_store and all(part is None or part.complete for part in parts)

    def wanted_vectors(self, column: str, rows: np.ndarray) -> list[Wanted]:
        """The parts of a column's vectors that have these rows."""
        form = self.record.form(column)
        if form is None:
            vectors = self.raw(column)
            assert isinstance(vectors, ParquetVectors)
            return [(vectors, vectors.groups_of(rows))] if self.in_store else []
        parts = self._vector_parts(column)
        if parts is None:
            return []
        starts = rows * form.row_bytes(self.record.dim)
        return [(parts, np.searchsorted(parts.blocks.offsets, starts, side="right") - 1)]

    def tokens(self, column: str, width: int) -> SegmentTokens:
        """The tokens of a column, of which only those may be read that were fetched."""
        where, rebuild = display_name(self._folder.url), build_command(self._folder)
        rows = self.record.rows
        return self._files.once(
            (column, "tokens"),
            lambda: SegmentTokens(self._files, column, rows, width, where, rebuild),
        )

    def raw(self, column: str) -> StoredVectors | ParquetVectors:
        """The vectors of a column: mapped, or read from the Parquet files."""
        return self._files.once((column, "vectors"), lambda: self._open_vectors(column))

    def _open_vectors(self, column: str) -> StoredVectors | ParquetVectors:
        record, form = self.record, self.record.form(column)

        def opened(
            file: BufferedReader, where: str, rebuild: str
        ) -> StoredVectors | ParquetVectors:
            if form is not None:
                return form.map(file, record.rows, record.dim)
            content, shards = file.read(), record.shards
            return ParquetVectors(self._folder, record.id, column, shards, record.dim, content)

        return self._files.open_once(record.vectors_file(column), opened)

    def exact(self, column: str) -> Any:
        """A FAISS index of one list that scans all vectors of a column, those of zeros too where a
        row has none; None where they are not float16. To be searched with `store_pairs`; shared: a
        search must not change it."""
        if self.record.form(column) is not FORMS["float16"]:
            return None
        rows, dim = self.record.rows, self.record.dim
        return self._files.open_once(
            f"{column}.f16",
            lambda file, where, rebuild: open_exact(file, rows, dim, where),
            "exact",
        )

    def list_sizes(self, column: str, trained: Trained) -> ListSizes:
        """How many rows each list of a column has, and where it lies in the file."""
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

    def coded(self, column: str, trained: Trained) -> tuple[np.ndarray, np.ndarray]:
        """The list of each row, (rows,) int32, -1 where it has no vector, and its code, (rows,
        code_size) uint8. Of a segment in a store all lists are requested."""
        fetch(self.wanted_lists(column, trained))
        return coded_rows(self.lists(column, trained), len(self))

    def has(self, column: str) -> np.ndarray | None:
        """Which rows have a vector in a column: (rows,) bool; None where all have."""
        if self.record.vectors[column] == self.record.rows:
            return None
        return self._files.once((column, "has"), lambda: self.raw(column).present())

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

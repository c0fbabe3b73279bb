"""A segment: an immutable piece of the index, written once, memory-mapped ever after.

    index/segments/<id>/rows.arrow      the catalog: key, caption, metadata, ... of each position
                        keywords.arrow  which rows have a term in their captions
                        image.f16       the raw vectors, (rows, dim) float16, zero where none is
                        image.lists     codes of the vectors, list by list, for FAISS (lists.py)
                        image.sizes     sizes and checksums of the lists
                        segment.json    its shards, size and checksum of each file; written last

Positions are 0 .. rows - 1 inside a segment. Rows without a vector in a column are in none of its
lists. An exact column has no lists: its vectors are scanned. `segment.json` is written last and its
own checksum stands in the generation, so that a chain of checksums runs from the live generation to
every byte it answers from.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from io import BufferedReader
from typing import Any

import numpy as np
import pyarrow as pa

from chiasm.index.segments.advice import build_command
from chiasm.index.segments.cache import open_cached
from chiasm.index.segments.catalog import Catalog, CatalogWriter, IndexedShard
from chiasm.index.segments.checksums import Digest, FileSum
from chiasm.index.segments.json_columns import SchemaInference
from chiasm.index.segments.keywords import Keywords, KeywordWriter
from chiasm.index.segments.lists import ListsWriter, open_exact, open_lists
from chiasm.index.segments.manifest import Deletions
from chiasm.index.segments.names import CATALOG, KEYWORDS, RECORD, SEGMENTS, segment_file
from chiasm.index.segments.record import SegmentRecord
from chiasm.index.segments.trained import Trained
from chiasm.index.segments.verified import is_verified
from chiasm.pipeline.collection import vectors_of
from chiasm.pipeline.errors import CollectionError, SourceError, StorageError
from chiasm.pipeline.storage import Folder, PendingFile, display_name


class SegmentGone(CollectionError):
    """A file of a segment is not there any more: a later build may have swept it."""


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
        self._raw[column].write(vectors.tobytes())
        self._vectors[column] += int(has.sum())
        if (lists := self._lists[column]) is not None:
            lists.add(vectors[has], self.rows + np.flatnonzero(has))

    def commit(self) -> tuple[SegmentRecord, FileSum]:
        """Name every file, `segment.json` last; returns the record and its checksum."""
        self._catalog.close()
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


class OpenFiles:
    """What is made of a segment's files, by use; of one segment in several generations once."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.made: dict[object, Any] = {}


class Segment:
    """A committed segment, open for searching. Files are compared with their checksums and mapped
    when first used; safe to share. deletions: of rows that searches leave out.

    Using a file raises CollectionError where it is damaged, SegmentGone where it was removed."""

    def __init__(
        self,
        folder: Folder,
        record: SegmentRecord,
        deletions: Deletions | None = None,
        files: OpenFiles | None = None,
    ) -> None:
        """files: those of the same segment that are open already."""
        self.record, self.deletions = record, deletions
        self._folder = folder
        self._files = OpenFiles() if files is None else files
        self._lock, self._open = self._files.lock, self._files.made
        self._deleted: np.ndarray | None = None

    def with_deletions(self, deletions: Deletions | None) -> Segment:
        """The same segment in another generation; the two share what either has open."""
        if deletions == self.deletions:
            return self
        return Segment(self._folder, self.record, deletions, self._files)

    def __len__(self) -> int:
        return self.record.rows

    @property
    def catalog(self) -> Catalog:
        return self._open_once(
            CATALOG, lambda file, where, rebuild: Catalog(file, where, rebuild, self.record.rows)
        )

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
        return self._open_once(
            KEYWORDS, lambda file, where, rebuild: Keywords(file, where, rebuild, self.record.rows)
        )

    def exact(self, column: str) -> Any:
        """A FAISS index of one list that scans all vectors of a column, those of zeros too where a
        row has none. To be searched with `store_pairs`; shared: a search must not change it."""
        rows, dim = self.record.rows, self.record.dim
        return self._open_once(
            f"{column}.f16",
            lambda file, where, rebuild: open_exact(file, rows, dim, where),
            "exact",
        )

    def lists(self, column: str, trained: Trained) -> Any:
        """The FAISS index of a column's lists, mapped. Shared: a search must not change it."""

        def opened(file: BufferedReader, where: str, rebuild: str) -> Any:
            sizes_name = segment_file(self.record.id, f"{column}.sizes")
            with self._opened(sizes_name, self.record.files[f"{column}.sizes"]) as (other, _):
                content = other.read()
            size = self.record.files[f"{column}.lists"].size
            return open_lists(file, size, content, trained, where, rebuild)

        return self._open_once(f"{column}.lists", opened)

    def has(self, column: str) -> np.ndarray | None:
        """Which rows have a vector in a column: (rows,) bool; None where all have."""
        if self.record.vectors[column] == self.record.rows:
            return None
        with self._lock:
            key = f"has {column}"
            if key not in self._open:
                self._open[key] = np.any(self.raw(column), axis=1)
            return self._open[key]

    def deleted(self) -> np.ndarray | None:
        """Which rows searches leave out: (rows,) bool; None where there are none."""
        deletions = self.deletions
        if deletions is None:
            return None
        with self._lock:
            if self._deleted is None:
                where = display_name(self._folder.url_of(deletions.file))
                bits = np.frombuffer(self._read(deletions.file, deletions.checksum), np.uint8)
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

    def _read(self, name: str, checksum: FileSum) -> bytes:
        """The content of a small file, compared at every reading: remembering what was right would
        cost as much."""
        try:
            content = self._folder.read_bytes(name)
        except StorageError:
            if self._folder.stat(name) is None:
                raise self._gone(display_name(self._folder.url_of(name))) from None
            raise
        if (found := FileSum.of(content)) != checksum:
            raise self._damaged(found, checksum, display_name(self._folder.url_of(name)))
        return content

    def raw(self, column: str) -> np.ndarray:
        """(rows, dim) float16, mapped, zero where a row has no vector."""
        shape = (self.record.rows, self.record.dim)
        return self._open_once(
            f"{column}.f16",
            lambda file, where, rebuild: _mapped(file, shape),
        )

    def missing_files(self) -> list[str]:
        """The names of files that are not there with their sizes."""
        stats = self._folder.list_stats(f"{SEGMENTS}/{self.record.id}")
        missing: list[str] = []
        for base, checksum in self.record.files.items():
            name = segment_file(self.record.id, base)
            found = stats.get(name) or self._folder.stat(name)  # a listing may be late
            if found is None or found.size not in (checksum.size, -1):
                missing.append(name)
        return missing

    def _open_once(
        self, name: str, opener: Callable[[BufferedReader, str, str], Any], use: str = ""
    ) -> Any:
        """What `opener` makes of a file of the segment, made once. use: apart from other uses."""
        with self._lock:
            if (name, use) not in self._open:
                file, checksum = segment_file(self.record.id, name), self.record.files[name]
                with self._opened(file, checksum) as (opened, where):
                    made = opener(opened, where, build_command(self._folder))
                self._open[name, use] = made
            return self._open[name, use]

    @contextmanager
    def _opened(self, name: str, checksum: FileSum) -> Iterator[tuple[BufferedReader, str]]:
        """A file of the collection whose content has its checksum, and its name for messages."""
        where = display_name(self._folder.url_of(name))
        try:
            with self._open_verified(name, checksum, where) as file:
                yield file, where
        except OSError as error:
            found = error.strerror or str(error)
            raise StorageError(where, expected="a usable file", found=found) from error

    def _open_verified(self, file: str, checksum: FileSum, where: str) -> BufferedReader:
        """A file whose content has its checksum; of an object store, its cached copy."""
        if self._folder.local is None:
            try:
                return open_cached(self._folder, file, checksum, self._files)
            except (SourceError, StorageError):
                if self._folder.stat(file) is None:
                    raise self._gone(where) from None
                raise
        try:
            local = open(self._folder.path(file), "rb")  # noqa: SIM115 (returned open)
        except FileNotFoundError:
            raise self._gone(where) from None
        if is_verified(local, checksum):
            local.seek(0)
            return local
        with local:
            raise self._damaged(FileSum.of_file(local), checksum, where)

    def _damaged(self, found: FileSum, checksum: FileSum, where: str) -> CollectionError:
        return CollectionError(
            where,
            expected=f"checksum {checksum.blake2b}, {checksum.size} bytes",
            found=f"{found.blake2b}, {found.size} bytes",
            do=f"run {build_command(self._folder)}",
        )

    def _gone(self, where: str) -> SegmentGone:
        do = f"run {build_command(self._folder)}"
        return SegmentGone(where, expected="a file of the index", found="no such file", do=do)


def _mapped(file: BufferedReader, shape: tuple[int, int]) -> np.ndarray:
    """A file of float16, mapped, as a plain array: `memmap` costs microseconds an access."""
    return np.memmap(file, dtype="<f2", mode="r", shape=shape).view(np.ndarray)

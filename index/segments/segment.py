"""A segment: an immutable piece of the index, written once, memory-mapped ever after.

    index/segments/<id>/rows.arrow      the catalog: key, caption, metadata, ... of each position
                        image.faiss     the FAISS index of a column; its ids are positions
                        image.f16       the raw vectors, (rows, dim) float16, zero where none is
                        segment.json    its shards, size and checksum of each file; written last

Positions are 0 .. rows - 1 inside a segment. Rows without a vector in a column are absent from its
FAISS index. `segment.json` is written last and its own checksum stands in the generation, so that a
chain of checksums runs from the live generation to every byte it answers from.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from io import BufferedReader
from typing import Any

import numpy as np
import pyarrow as pa

from chiasm.index.faiss_runtime import load_faiss
from chiasm.index.plan import Count
from chiasm.index.segments.advice import build_command
from chiasm.index.segments.cache import open_cached
from chiasm.index.segments.catalog import Catalog, CatalogWriter, IndexedShard
from chiasm.index.segments.checksums import Digest, FileSum
from chiasm.index.segments.json_columns import SchemaInference
from chiasm.index.segments.names import (
    CATALOG,
    RECORD,
    SEGMENTS,
    is_final_file,
    is_segment_id,
    segment_file,
)
from chiasm.index.segments.verified import is_verified
from chiasm.pipeline.collection import vectors_of
from chiasm.pipeline.errors import CollectionError, SourceError, StorageError
from chiasm.pipeline.storage import Folder, PendingFile, display_name
from chiasm.pipeline.stored_records import read_record

SCHEMA = 1


class SegmentGone(CollectionError):
    """A file of a segment is not there any more: a later build may have swept it."""


@dataclass(frozen=True)
class SegmentRecord:
    """What `segment.json` holds. vectors: how many each column's index has."""

    id: str
    rows: Count
    dim: Count
    vectors: dict[str, Count]
    shards: tuple[IndexedShard, ...]
    files: dict[str, FileSum]
    schema: int = SCHEMA

    def to_json(self) -> bytes:
        text = json.dumps(asdict(self), ensure_ascii=False, indent=1)
        return text.encode("utf-8", "surrogatepass") + b"\n"

    @classmethod
    def from_json(cls, data: bytes, folder: Folder, name: str) -> SegmentRecord:
        """Raises CollectionError for a damaged record, and for names that chiasm does not write."""
        where, do = display_name(folder.url_of(name)), f"run {build_command(folder)}"
        record = read_record(data, where, cls, what="a segment", do=do, schema=SCHEMA)
        fault = record.fault()
        if fault:
            raise CollectionError(where, expected="a segment", found=fault, do=do)
        return record

    def fault(self) -> str:
        """What does not fit together, "" where everything does."""
        if not is_segment_id(self.id):
            return f"the id {self.id!r}"
        if odd := [name for name in self.files if not is_final_file(name)]:
            return f"a file {odd[0]!r}"
        if CATALOG not in self.files:
            return f"no file {CATALOG}"
        if sum(shard.rows for shard in self.shards) != self.rows:
            return f"{self.rows} rows of shards that have another number"
        raw = {column: self.files.get(f"{column}.f16") for column in self.vectors}
        for column, checksum in raw.items():
            size = None if checksum is None else checksum.size
            if size != self.rows * self.dim * 2 or f"{column}.faiss" not in self.files:
                return f"no files for {self.rows} vectors of column {column!r}"
        return ""


class SegmentWriter:
    """Writes a segment from Parquet rows; `commit` gives its files their names. Used in a `with`,
    which leaves no temporary behind. shards: those whose rows may come, in this order. copied: the
    catalog's `copied_columns`. indexes: for each column an empty FAISS index that takes ids,
    trained where its kind needs it. batch_bytes: as the catalog's writer takes it.
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
        indexes: dict[str, Any],
        dim: int,
        batch_bytes: int,
    ) -> None:
        self.id, self.dim, self.rows = segment_id, dim, 0
        self._folder, self._run_id = folder, run_id
        self._shards = dict(enumerate(shards))
        self._indexes = indexes
        self._files: dict[str, tuple[PendingFile, Digest]] = {}
        with ExitStack() as self._stack:  # closes the first files where a later one fails
            self._raw = {column: self._create(f"{column}.f16") for column in indexes}
            catalog = self._create(CATALOG)
            self._stack = self._stack.pop_all()
        self._catalog = CatalogWriter(catalog, shards, schema, copied, batch_bytes)

    def __enter__(self) -> SegmentWriter:
        return self

    def __exit__(self, *raised: Any) -> None:
        self._stack.__exit__(*raised)

    def add(self, shard: int, first: int, rows: pa.Table) -> None:
        """Take consecutive rows of the shard at `shards[shard]`, the first being its row
        `first`."""
        self._catalog.add(shard, first, rows)
        for column, index in self._indexes.items():
            vectors, has = vectors_of(rows[column])
            self._raw[column].write(vectors.tobytes())
            positions = self.rows + np.flatnonzero(has)
            index.add_with_ids(vectors[has].astype(np.float32), positions.astype(np.int64))
        self.rows += len(rows)

    def leave_out(self, shard: int) -> None:
        """The shard at `shards[shard]`, of which no rows were added, is not part of the segment."""
        del self._shards[shard]

    def commit(self) -> tuple[SegmentRecord, FileSum]:
        """Name every file, `segment.json` last; returns the record and its checksum."""
        faiss = load_faiss()
        self._catalog.close()
        for column, index in self._indexes.items():
            faiss.write_index(
                index, faiss.PyCallbackIOWriter(self._create(f"{column}.faiss").write)
            )
        for pending, _ in self._files.values():
            pending.commit()
        record = SegmentRecord(
            id=self.id,
            rows=self.rows,
            dim=self.dim,
            vectors={column: int(index.ntotal) for column, index in self._indexes.items()},
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
    when first used; safe to share. deleted: positions that searches leave out.

    Using a file raises CollectionError where it is damaged, SegmentGone where it was removed."""

    def __init__(self, folder: Folder, record: SegmentRecord, deleted: Sequence[int] = ()) -> None:
        self.record = record
        self.deleted = np.array(deleted, dtype=np.int64)
        self._folder = folder
        self._lock = threading.Lock()
        self._open: dict[str, Any] = {}

    def __len__(self) -> int:
        return self.record.rows

    @property
    def catalog(self) -> Catalog:
        return self._open_once(
            CATALOG, lambda file, where, rebuild: Catalog(file, where, rebuild, self.record.rows)
        )

    def index(self, column: str) -> Any:
        """The column's FAISS index, mapped. Shared: a search must not change it."""
        return self._open_once(f"{column}.faiss", read_index)

    def raw(self, column: str) -> np.ndarray:
        """(rows, dim) float16, mapped, zero where a row has no vector."""
        shape = (self.record.rows, self.record.dim)
        return self._open_once(
            f"{column}.f16",
            lambda file, where, rebuild: np.memmap(file, dtype="<f2", mode="r", shape=shape),
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

    def _open_once(self, name: str, opener: Callable[[BufferedReader, str, str], Any]) -> Any:
        with self._lock:
            if name not in self._open:
                where = display_name(self._folder.url_of(segment_file(self.record.id, name)))
                try:
                    with self._open_file(name, where) as file:
                        self._open[name] = opener(file, where, build_command(self._folder))
                except OSError as error:
                    found = error.strerror or str(error)
                    raise StorageError(where, expected="a usable file", found=found) from error
            return self._open[name]

    def _open_file(self, name: str, where: str) -> BufferedReader:
        """A file whose content has its checksum; of an object store, its cached copy."""
        file, checksum = segment_file(self.record.id, name), self.record.files[name]
        if self._folder.local is None:
            try:
                return open_cached(self._folder, file, checksum, self)
            except (SourceError, StorageError):
                if self._folder.stat(file) is None:
                    raise self._gone(where) from None
                raise
        try:
            local = open(self._folder.path(file), "rb")  # noqa: SIM115 (returned open)
        except FileNotFoundError:
            raise self._gone(where) from None
        if is_verified(local, checksum):
            return local
        with local:
            found = FileSum.of_file(local)
        raise CollectionError(
            where,
            expected=f"checksum {checksum.blake2b}, {checksum.size} bytes",
            found=f"{found.blake2b}, {found.size} bytes",
            do=f"run {build_command(self._folder)}",
        )

    def _gone(self, where: str) -> SegmentGone:
        do = f"run {build_command(self._folder)}"
        return SegmentGone(where, expected="a file of the index", found="no such file", do=do)


def read_index(file: BufferedReader, where: str, rebuild: str) -> Any:
    """An open FAISS index, mapped; the file may be closed afterwards. where, rebuild: its name, and
    the command that errors advise."""
    faiss = load_faiss()
    # By the open file, which stays the one that was verified whatever happens to its name.
    path = f"/dev/fd/{file.fileno()}"
    try:
        return faiss.read_index(
            path if os.path.exists(path) else file.name,
            faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_READ_ONLY,
        )
    except RuntimeError as error:
        raise CollectionError(
            where,
            expected="a FAISS index",
            found=str(error).strip().splitlines()[-1],
            do=f"run {rebuild}",
        ) from error

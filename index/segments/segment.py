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
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from chiasm.index.faiss_runtime import load_faiss
from chiasm.index.segments.advice import build_command
from chiasm.index.segments.cache import fetch_to_cache
from chiasm.index.segments.catalog import Catalog, CatalogWriter, IndexedShard
from chiasm.index.segments.checksums import Digest, FileSum
from chiasm.index.segments.json_columns import SchemaInference
from chiasm.pipeline.collection import vectors_of
from chiasm.pipeline.errors import CollectionError
from chiasm.pipeline.storage import Folder, PendingFile, display_name, is_temporary

SCHEMA = 1
CATALOG = "rows.arrow"
SEGMENTS = "index/segments"
TRAINED = "index/trained"


@dataclass(frozen=True)
class SegmentRecord:
    """What `segment.json` holds. vectors: how many each column's index has."""

    id: str
    rows: int
    dim: int
    vectors: dict[str, int]
    shards: tuple[IndexedShard, ...]
    files: dict[str, FileSum]
    schema: int = SCHEMA

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), ensure_ascii=False, indent=1).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes, folder: Folder, name: str) -> SegmentRecord:
        try:
            fields = json.loads(data)
            fields["shards"] = tuple(IndexedShard(**shard) for shard in fields["shards"])
            fields["files"] = {file: FileSum(**entry) for file, entry in fields["files"].items()}
            return cls(**fields)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CollectionError(
                display_name(folder.url_of(name)),
                expected="a segment",
                found=str(error),
                do=f"run {build_command(folder)}",
            ) from error


def is_segment_file(base: str) -> bool:
    """Whether a segment, or a folder of trained indexes, may hold a file of this name."""
    own = base in (CATALOG, "segment.json") or base.endswith((".faiss", ".f16"))
    return own or is_temporary(base)


def segment_file(segment_id: str, name: str) -> str:
    return f"{SEGMENTS}/{segment_id}/{name}"


class SegmentWriter:
    """Writes a segment from Parquet rows; `commit` gives its files their names. Used in a `with`,
    which leaves no temporary behind. copied: the catalog's `copied_columns`. indexes: for each
    column an empty FAISS index that takes ids, trained where its kind needs it.
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
    ) -> None:
        self.id, self.dim, self.rows = segment_id, dim, 0
        self._folder, self._run_id, self._shards = folder, run_id, tuple(shards)
        self._indexes = indexes
        self._stack = ExitStack()
        self._files: dict[str, tuple[PendingFile, Digest]] = {}
        self._raw = {column: self._create(f"{column}.f16") for column in indexes}
        self._catalog = CatalogWriter(self._create(CATALOG), shards, schema, copied)

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
            shards=self._shards,
            files={name: digest.sum() for name, (_, digest) in sorted(self._files.items())},
        )
        content = record.to_json()
        self._folder.write_whole(segment_file(self.id, "segment.json"), content, self._run_id)
        return record, FileSum.of(content)

    def _create(self, name: str) -> Digest:
        pending = self._folder.create(segment_file(self.id, name), self._run_id)
        self._stack.enter_context(pending)
        digest = Digest(pending)
        self._files[name] = pending, digest
        return digest


class Segment:
    """A committed segment, open for searching. Files are mapped when first used; safe to share."""

    def __init__(self, folder: Folder, record: SegmentRecord) -> None:
        self.record = record
        self._folder = folder
        self._lock = threading.Lock()
        self._open: dict[str, Any] = {}

    def __len__(self) -> int:
        return self.record.rows

    @property
    def catalog(self) -> Catalog:
        return self._open_once(CATALOG, Catalog)

    def index(self, column: str) -> Any:
        """The column's FAISS index, mapped. Shared: a search must not change it."""
        return self._open_once(f"{column}.faiss", _read_index)

    def raw(self, column: str) -> np.ndarray:
        """(rows, dim) float16, mapped, zero where a row has no vector."""
        shape = (self.record.rows, self.record.dim)
        return self._open_once(
            f"{column}.f16",
            lambda path, rebuild: np.memmap(path, dtype="<f2", mode="r", shape=shape),
        )

    def _open_once(self, name: str, opener: Callable[[Path, str], Any]) -> Any:
        with self._lock:
            if name not in self._open:
                self._open[name] = opener(self._local_path(name), build_command(self._folder))
            return self._open[name]

    def _local_path(self, name: str) -> Path:
        """The path of a file that has its recorded size; of an object store, of its cached copy."""
        file = segment_file(self.record.id, name)
        if self._folder.local is None:
            return fetch_to_cache(self._folder, file, self.record.files[name])
        path = self._folder.path(file)
        size = path.stat().st_size if path.exists() else None
        if size != self.record.files[name].size:
            raise CollectionError(
                str(path),
                expected=f"{self.record.files[name].size} bytes",
                found="no such file" if size is None else f"{size}",
                do=f"run {build_command(self._folder)}",
            )
        return path


def _read_index(path: Path, rebuild: str) -> Any:
    faiss = load_faiss()
    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_READ_ONLY)
    except RuntimeError as error:
        raise CollectionError(
            str(path),
            expected="a FAISS index",
            found=str(error).strip().splitlines()[-1],
            do=f"run {rebuild}",
        ) from error

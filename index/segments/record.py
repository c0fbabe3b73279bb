"""A segment's record, `segment.json`: its rows, its shards, size and checksum of each file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from chiasm.index.plan import Count
from chiasm.index.segments.advice import build_command
from chiasm.index.segments.catalog import IndexedShard
from chiasm.index.segments.checksums import FileSum
from chiasm.index.segments.names import (
    CATALOG,
    ENDS,
    SOURCE,
    TOKENS,
    is_final_file,
    is_segment_id,
)
from chiasm.index.segments.proposals import proposal_column
from chiasm.index.segments.source_file import source_size
from chiasm.index.segments.vector_files import FORMS, VectorForm
from chiasm.pipeline.errors import CollectionError
from chiasm.pipeline.storage import Folder, display_name
from chiasm.pipeline.stored_records import read_record

SCHEMA = 2  # 1 had a FAISS file a column instead of lists: such a column is scanned exactly


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
        for column in self.vectors:
            if (size := self._vector_bytes(column)) is None:
                return f"no file for {self.rows} vectors of column {column!r}"
            name = self.vectors_file(column)
            if self.files[name].size != size:
                return f"{name} of {self.files[name].size} bytes, not {size}"
        for column in self.token_columns:
            ends, proposed = self.files.get(f"{column}.{ENDS}"), proposal_column(column)
            if ends is None or ends.size != 8 * self.rows:
                return f"no ends of the tokens of {self.rows} rows of column {column!r}"
            if proposed not in self.vectors:
                return f"no vectors that propose rows of column {column!r}"
        return ""

    @property
    def token_columns(self) -> list[str]:
        """The columns that have tokens."""
        names = (name.rpartition(".") for name in self.files)
        return [column for column, _, kind in names if kind == TOKENS]

    def form(self, column: str) -> VectorForm | None:
        """How the vectors of a column are stored; None where they are not."""
        found = (form for form in FORMS.values() if f"{column}.{form.suffix}" in self.files)
        return next(found, None)

    def vectors_file(self, column: str) -> str:
        """The file of a column's vectors, or of what says where they are."""
        form = self.form(column)
        return f"{column}.{SOURCE if form is None else form.suffix}"

    def _vector_bytes(self, column: str) -> int | None:
        """Of that file; None where there is none."""
        if (form := self.form(column)) is not None:
            return self.rows * form.row_bytes(self.dim)
        return source_size(self.shards) if f"{column}.{SOURCE}" in self.files else None

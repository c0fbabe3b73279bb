"""Writes a segment: rows come in, its files are named at the end, `segment.json` last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from chiasm.index.plan import Plan
from chiasm.index.segments.blocks import VectorBlocks
from chiasm.index.segments.catalog import CatalogWriter, IndexedShard
from chiasm.index.segments.checksums import Digest, FileSum
from chiasm.index.segments.json_columns import SchemaInference
from chiasm.index.segments.keywords import KeywordWriter
from chiasm.index.segments.lists import ListsWriter
from chiasm.index.segments.names import CATALOG, KEYWORDS, RECORD, SOURCE, blocks_file, segment_file
from chiasm.index.segments.proposals import Proposals, proposal_column
from chiasm.index.segments.record import SegmentRecord
from chiasm.index.segments.source_file import SourceWriter
from chiasm.index.segments.token_files import CopiedTokens, TokenWriter
from chiasm.index.segments.trained import Trained
from chiasm.index.segments.vector_files import FORMS, VectorForm
from chiasm.pipeline.collection import vectors_of
from chiasm.pipeline.storage import Folder, PendingFile


@dataclass(frozen=True)
class CopiedVectors:
    """Of some rows of another segment (n,) what it has of a column, as it has it. has: which have a
    vector, (n,) bool. stored (n, ...): their vectors as its file has them, None where it has none.
    digests: then those of the file of their shard. lists, codes: of the rows that have a vector
    their lists (m,) and codes (m, code_size), None where the column is exact."""

    has: np.ndarray
    stored: np.ndarray | None = None
    digests: bytes = b""
    lists: np.ndarray | None = None
    codes: np.ndarray | None = None


class SegmentWriter:
    """Writes a segment from Parquet rows; `commit` gives its files their names. Used in a `with`,
    which leaves no temporary behind. shards: those whose rows may come, in this order. copied: the
    catalog's `copied_columns`. plans: of each vector column. trained: what its segments share,
    None where it is exact. batch_bytes: as the catalog's writer takes it. capacity: how many
    rows may come. tokens: by modality that has tokens their width, and what makes proposals of
    added rows, None where all are copied.
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
        plans: Mapping[str, Plan],
        trained: Mapping[str, Trained | None],
        dim: int,
        batch_bytes: int,
        capacity: int,
        tokens: Mapping[str, tuple[int, Proposals | None]] | None = None,
    ) -> None:
        self.id, self.dim, self.rows = segment_id, dim, 0
        self._folder, self._run_id = folder, run_id
        self._shards = dict(enumerate(shards))
        self._lists = {
            column: None if shared is None else ListsWriter(shared, capacity)
            for column, shared in trained.items()
        }
        self._vectors = dict.fromkeys(plans, 0)
        self._files: dict[str, tuple[PendingFile, Digest]] = {}
        with ExitStack() as self._stack:  # closes the first files where a later one fails
            self._stored = {
                column: self._vector_file(column, plan, shards) for column, plan in plans.items()
            }
            self._tokens = {
                modality: TokenWriter(modality, width, dim, self._create, proposals)
                for modality, (width, proposals) in (tokens or {}).items()
            }
            catalog, keywords = self._create(CATALOG), self._create(KEYWORDS)
            self._stack = self._stack.pop_all()
        self._catalog = CatalogWriter(catalog, shards, schema, copied, batch_bytes)
        self._keywords = KeywordWriter(keywords)

    def _vector_file(
        self, column: str, plan: Plan, shards: Sequence[IndexedShard]
    ) -> VectorFile | SourceWriter:
        if plan.vectors == "none":
            return SourceWriter(shards)
        form = FORMS[plan.vectors]
        return VectorFile(form, self._create(f"{column}.{form.suffix}"), self.dim)

    def __enter__(self) -> SegmentWriter:
        return self

    def __exit__(self, *raised: Any) -> None:
        self._stack.__exit__(*raised)

    def add(self, shard: int, first: int, rows: pa.Table) -> None:
        """Take consecutive rows of the shard at `shards[shard]`, the first being its row
        `first`."""
        self._catalog.add(shard, first, rows)
        self._keywords.add(rows)
        for column, stored in self._stored.items():
            vectors, has = vectors_of(rows[column])
            stored.add(shard, vectors, has)
            if (lists := self._lists[column]) is not None:
                lists.add(vectors[has], self.rows + np.flatnonzero(has))
            self._vectors[column] += int(has.sum())
        for writer in self._tokens.values():
            writer.add(rows)
        self.rows += len(rows)

    def copy(
        self,
        shard: int,
        rows: pa.Table,
        columns: Mapping[str, CopiedVectors],
        tokens: Mapping[str, CopiedTokens] | None = None,
    ) -> None:
        """Take rows of another segment of the same plans, of the shard at `shards[shard]`: its
        catalog's, as `CatalogWriter.copy` takes them, and what it has of each column."""
        self._catalog.copy(shard, rows)
        self._keywords.add(rows)
        for column, copied in columns.items():
            self._stored[column].copy(shard, rows["row"].to_numpy(), copied)
            if (lists := self._lists[column]) is not None:
                assert copied.lists is not None and copied.codes is not None
                numbers = self.rows + np.flatnonzero(copied.has)
                lists.copy(copied.codes, copied.lists, numbers)
            self._vectors[column] += int(copied.has.sum())
        for modality, writer in self._tokens.items():
            writer.copy((tokens or {})[modality])
        self.rows += len(rows)

    def commit(self) -> tuple[SegmentRecord, FileSum]:
        """Name every file, `segment.json` last; returns the record and its checksum."""
        self._catalog.close()
        self._create(blocks_file(CATALOG)).write(self._catalog.blocks.to_bytes())
        for column, stored in self._stored.items():
            if isinstance(stored, SourceWriter):
                self._create(f"{column}.{SOURCE}").write(stored.to_bytes())
            else:
                blocks = self._create(blocks_file(f"{column}.{stored.form.suffix}"))
                blocks.write(stored.blocks.to_bytes())
        for modality, writer in self._tokens.items():
            writer.finish()
            self._vectors[proposal_column(modality)] = writer.vectors
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


class VectorFile:
    """The vectors of a column, written to an open file in their form."""

    def __init__(self, form: VectorForm, file: Digest, dim: int) -> None:
        self.form, self._file = form, file
        self.blocks = VectorBlocks(form.row_bytes(dim))

    def add(self, shard: int, vectors: np.ndarray, has: np.ndarray) -> None:
        """Take vectors (n, D) float16."""
        self._write(self.form.stored(vectors))

    def copy(self, shard: int, numbers: np.ndarray, copied: CopiedVectors) -> None:
        assert copied.stored is not None
        self._write(copied.stored)

    def _write(self, stored: np.ndarray) -> None:
        data = stored.tobytes()
        self._file.write(data)
        self.blocks.add(data)

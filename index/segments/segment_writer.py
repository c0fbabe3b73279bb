"""Writing a segment, from Parquet rows or from rows of other segments."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import pyarrow as pa

from chiasm.index.segments.blocks import VectorBlocks
from chiasm.index.segments.catalog import CatalogWriter, IndexedShard
from chiasm.index.segments.checksums import Digest, FileSum
from chiasm.index.segments.json_columns import SchemaInference
from chiasm.index.segments.keywords import KeywordWriter
from chiasm.index.segments.lists import ListsWriter
from chiasm.index.segments.names import CATALOG, KEYWORDS, RECORD, blocks_file, segment_file
from chiasm.index.segments.record import SegmentRecord
from chiasm.index.segments.trained import Trained
from chiasm.pipeline.collection import vectors_of
from chiasm.pipeline.storage import Folder, PendingFile


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

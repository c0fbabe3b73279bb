"""Reads embeddings: the Parquet files of the shards that are done, after checking their footers."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from chiasm.pipeline.collection.ledger import read_entry
from chiasm.pipeline.collection.parquet_schema import (
    FOLDER,
    FOOTER_KEY,
    SCHEMAS,
    Footer,
    earlier_parquet_name,
    parquet_name,
    shard_id_of,
)
from chiasm.pipeline.collection.parquet_writer import storable
from chiasm.pipeline.collection.token_columns import is_tokens, numbers_of
from chiasm.pipeline.errors import CollectionError, StorageError
from chiasm.pipeline.storage import Folder, display_name
from chiasm.pipeline.stored_records import read_record

LOG = logging.getLogger(__name__)

_EXPONENT = np.uint16(0x7C00)  # of a float16; all ones in NaN and infinity alone
_ROWS_PER_READ = 64


@dataclass(frozen=True)
class EmbeddingFile:
    """The Parquet file of one done shard."""

    folder: Folder
    footer: Footer

    @property
    def shard_id(self) -> str:
        return self.footer.source.id

    @property
    def edition(self) -> str:
        return self.footer.edition

    @property
    def rows(self) -> int:
        return self.footer.rows

    def open(self) -> pq.ParquetFile:
        """The open file, memory-mapped or read by ranges. The caller closes it; CollectionError
        where it is damaged."""
        return _open(self.folder, self.shard_id)

    def group_count(self) -> int:
        """How many row groups there are."""
        with self.open() as file:
            return file.num_row_groups

    def read(self, columns: list[str] | None = None) -> pa.Table:
        """Whole columns, in row order. Raises CollectionError where the file is damaged."""
        with self.open() as file, _damage_errors(self.folder, self.shard_id):
            return file.read(columns=columns)

    def groups(
        self, columns: list[str], numbers: Iterable[int] | None = None
    ) -> Iterator[pa.Table]:
        """The same row group by row group, in bounded memory; `numbers` picks some of them."""
        with self.open() as file:
            for number in range(file.num_row_groups) if numbers is None else numbers:
                with _damage_errors(self.folder, self.shard_id):
                    group = _finite(file.read_row_group(number, columns))
                yield group

    def read_groups(
        self, columns: list[str], numbers: Iterable[int], metadata: pq.FileMetaData
    ) -> pa.Table:
        """Some row groups as one table. metadata: the file's, read before. Raises CollectionError
        where the file is damaged."""
        with (
            _damage_errors(self.folder, self.shard_id),
            _open(self.folder, self.shard_id, metadata) as file,
        ):
            return _finite(file.read_row_groups(list(numbers), columns))

    def row(self, key: str, columns: list[str] | None = None) -> pa.Table | None:
        """The row of one sample as a table of one row; None where the shard has no such key.

        Reads one row group, found by the statistics of `key`; where keys are not sorted, the keys
        of every group that may contain it."""
        key = storable(key)
        with self.open() as file, _damage_errors(self.folder, self.shard_id):
            for group in _groups_with(file.metadata, key):
                keys = file.read_row_group(group, ["key"], use_threads=False)["key"]
                row = pc.index(keys, key).as_py()
                if row >= 0:
                    return _row(file, group, row, columns)
        return None

    def vectors(self, column: str) -> tuple[np.ndarray, np.ndarray]:
        """One vector column: (rows, D) float16, zero where null, and which rows have it, (rows,)
        bool."""
        return vectors_of(self.read([column])[column])


def vectors_of(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """A vector column as (n, D) float16, zero where null, and which rows have one, (n,) bool."""
    array = column.combine_chunks()
    has = np.asarray(array.is_valid())
    flat = array.values.slice(
        array.offset * array.type.list_size, len(array) * array.type.list_size
    )
    vectors = flat.to_numpy(zero_copy_only=False).reshape(len(array), array.type.list_size)
    if not has.all():
        vectors = np.where(has[:, None], vectors, np.float16(0))
    return vectors, has


def _finite(rows: pa.Table) -> pa.Table:
    """The same rows; ArrowInvalid where a vector has NaN or infinity, which no search survives."""
    for name, column in zip(rows.column_names, rows.columns, strict=True):
        if pa.types.is_fixed_size_list(column.type) and column.type.value_type == pa.float16():
            for chunk in column.chunks:
                _require_finite(chunk, name)
        elif is_tokens(column.type):
            for chunk in column.chunks:
                _require_finite(chunk.flatten(), name)
    return rows


def _require_finite(vectors: pa.FixedSizeListArray, name: str) -> None:
    bits = numbers_of(vectors).view(np.uint16)
    if ((bits & _EXPONENT) == _EXPONENT).any():
        raise pa.ArrowInvalid(f"NaN or infinity in the vectors of {name}")


def _row(file: pq.ParquetFile, group: int, row: int, columns: list[str] | None) -> pa.Table:
    """One row of a group. Small batches, so that little after it is decoded."""
    batches = file.iter_batches(_ROWS_PER_READ, [group], columns, use_threads=False)
    batch = next(itertools.islice(batches, row // _ROWS_PER_READ, None))
    return pa.Table.from_batches([batch.slice(row % _ROWS_PER_READ, 1)])


def _groups_with(metadata: pq.FileMetaData, key: str) -> Iterator[int]:
    """The row groups that may contain `key`, by their statistics (min and max)."""
    for number in range(metadata.num_row_groups):
        keys = metadata.row_group(number).column(0)
        # Keys of more than some thousand bytes are left out of the statistics.
        bounds = keys.statistics if keys.is_stats_set and keys.statistics.has_min_max else None
        if bounds is None or bounds.min <= key <= bounds.max:
            yield number


def embeddings(folder: Folder) -> list[EmbeddingFile]:
    """The files of the shards that are done, by shard id. A file whose ledger disagrees is left
    out."""
    shard_ids = embedded_shard_ids(folder)
    found = folder.map_concurrent(lambda shard_id: find_embedding(folder, shard_id), shard_ids)
    return [file for file in found if file is not None]


def find_embedding(folder: Folder, shard_id: str) -> EmbeddingFile | None:
    """The shard's file if the shard is done: the file is there, and its name and its ledger agree
    with its footer."""
    if not folder.exists(stored_parquet_name(folder, shard_id)):
        return None
    footer = read_footer(folder, shard_id)
    if footer.source.id != shard_id:
        # A copy beside the original, perhaps: its rows would be there twice.
        where = display_name(folder.url_of(stored_parquet_name(folder, shard_id)))
        LOG.warning("%s is left out: it holds the rows of shard %s", where, footer.source.id)
        return None
    if footer.agreeing(read_entry(folder, shard_id)) is None:
        return None
    return EmbeddingFile(folder, footer)


def read_footer(folder: Folder, shard_id: str) -> Footer:
    """The footer of a shard's file; CollectionError when it is damaged or not ours."""
    with _open(folder, shard_id) as file:
        return footer_of_file(file, display_name(folder.url_of(parquet_name(shard_id))))


def read_metadata(folder: Folder, shard_id: str) -> tuple[EmbeddingFile, pq.FileMetaData]:
    """A shard's file, done or not, and its metadata, for `EmbeddingFile.read_groups`; errors as of
    `read_footer`."""
    with _open(folder, shard_id) as file:
        where = display_name(folder.url_of(parquet_name(shard_id)))
        return EmbeddingFile(folder, footer_of_file(file, where)), file.metadata


def footer_of_file(file: pq.ParquetFile, where: str) -> Footer:
    """The footer of an open file; CollectionError, which names `where`, when it is not ours."""
    footer = (file.metadata.metadata or {}).get(FOOTER_KEY)
    what = "a Parquet file written by chiasm"
    if footer is None:
        raise CollectionError(where, expected=what, found="no chiasm footer")
    do = "delete it and run chiasm embed again"
    return read_record(footer, where, Footer, what=what, do=do, schema=max(SCHEMAS))


def stored_parquet_name(folder: Folder, shard_id: str) -> str:
    """The name of a shard's file as it is there: an earlier version may have written it."""
    name, earlier = parquet_name(shard_id), earlier_parquet_name(shard_id)
    if earlier is not None and not folder.exists(name) and folder.exists(earlier):
        return earlier
    return name


def _open(folder: Folder, shard_id: str, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
    with _damage_errors(folder, shard_id):
        file = folder.open_seekable(stored_parquet_name(folder, shard_id))
        # From a store, the columns of a row group are read in few ranges, not one for each column.
        remote = folder.local is None
        return pq.ParquetFile(
            file, metadata=metadata, pre_buffer=remote, page_checksum_verification=True
        )


@contextlib.contextmanager
def _damage_errors(folder: Folder, shard_id: str) -> Iterator[None]:
    """CollectionError for damage, StorageError for a failing disk. For reading only: Arrow raises
    ArrowInvalid for damage or an OSError, which has no errno then."""
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        where = display_name(folder.url_of(stored_parquet_name(folder, shard_id)))
        if isinstance(error, OSError) and error.errno is not None:
            raise StorageError(where, found=str(error)) from error
        raise CollectionError(
            where,
            expected="a whole Parquet file",
            found=str(error).splitlines()[0],
            do="delete it and run chiasm embed again",
        ) from error


def embedded_shard_ids(folder: Folder) -> list[str]:
    """The ids of the shards that have a Parquet file, done or not."""
    return sorted({shard_id for name in folder.list(FOLDER) if (shard_id := shard_id_of(name))})


def file_version(folder: Folder, shard_id: str) -> tuple[int, str] | None:
    """Size and version of a shard's Parquet file, None where it is gone."""
    found = folder.stat(stored_parquet_name(folder, shard_id))
    return None if found is None else (found.size, found.version)

"""Embeddings at rest: one Parquet file a shard, in row groups, read with its footer checked.

In come `Embedded` batches, out comes `embeddings/<shard id>.parquet`, which bears its name if and
only if the shard is done. Vectors are float16 fixed-size lists, BYTE_STREAM_SPLIT and zstd without
dictionaries: several times faster to read than pyarrow's defaults, and smaller. Nothing in a file
depends on when or where it was written, so the same shard gives the same bytes.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import CollectionError, StorageError
from pipeline.ledger import LedgerEntry, read_entry
from pipeline.records import COLUMNS, Embedded, Shard
from pipeline.storage import Folder, shown

SCHEMA = 1
ROW_GROUP = 256  # read whole for a single row; a scan of larger ones is hardly faster
_STEP = 64
_FOOTER_KEY = b"chiasm"


@dataclass(frozen=True)
class Footer:
    """What a Parquet file says of itself, stored as JSON under the key `chiasm` of its metadata.

    `rows` and `dropped` count samples; source, edition and counts repeat the ledger's, and the two
    have to agree. `encoder`, `fingerprint` and `dim` repeat collection.json.
    """

    source: Shard
    edition: str
    rows: int
    dropped: int
    encoder: str
    fingerprint: str
    dim: int
    schema: int = SCHEMA

    def agrees_with(self, entry: LedgerEntry | None) -> bool:
        return (
            entry is not None
            and entry.set_aside is None
            and (entry.source, entry.edition) == (self.source, self.edition)
            and (entry.rows, len(entry.dropped)) == (self.rows, self.dropped)
        )


def arrow_schema(dim: int) -> pa.Schema:
    """The columns of docs/formats.md; vectors are null in rows that lack the modality."""
    vector = pa.list_(pa.field("element", pa.float16(), nullable=False), dim)
    return pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            pa.field("shard", pa.string(), nullable=False),
            ("caption", pa.string()),
            ("captions", pa.list_(pa.string())),
            ("json", pa.string()),
            *((column, vector) for column in COLUMNS),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("sha256", pa.string()),
            ("member", pa.string()),
            ("offset", pa.int64()),
            ("size", pa.int64()),
        ]
    )


class ParquetWriter:
    """Writes one shard's rows under a temporary name; `commit` makes them the shard's file.

    Used in a `with`: leaving it without a commit leaves nothing behind.
    """

    def __init__(self, folder: Folder, shard: Shard, dim: int, run_id: str) -> None:
        self.shard, self.dim, self.rows = shard, dim, 0
        self._schema = arrow_schema(dim)
        self._file = folder.create(parquet_name(shard.id), run_id)
        self._parquet = pq.ParquetWriter(
            self._file,
            self._schema,
            compression="zstd",
            use_dictionary=False,
            column_encoding={f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in COLUMNS},
            # Free, and the only way to tell a flipped bit: vectors hardly compress, and zstd puts
            # what it cannot compress there as it is.
            write_page_checksum=True,
        )
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0

    def __enter__(self) -> ParquetWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # An abandoned pyarrow writer would close itself when collected, into a file that is gone.
        self._parquet.is_open = False
        self._file.__exit__(kind, error, trace)

    def write(self, embedded: Embedded) -> None:
        """Take a batch; whole row groups go to the file as they fill."""
        self._waiting.append(table_of(embedded, self.shard.id, self._schema))
        self._waiting_rows += len(embedded.batch)
        self.rows += len(embedded.batch)
        if self._waiting_rows >= ROW_GROUP:
            self._flush(everything=False)

    def commit(self, footer: Footer) -> None:
        """Write what is left and the footer, flush to the disk, give the file its name."""
        self._flush(everything=True)
        told = json.dumps(asdict(footer), sort_keys=True)
        self._parquet.add_key_value_metadata({_FOOTER_KEY.decode(): told})
        self._parquet.close()
        self._file.commit()

    def _flush(self, *, everything: bool) -> None:
        if not self._waiting:
            return
        table = pa.concat_tables(self._waiting)
        whole = len(table) if everything else len(table) // ROW_GROUP * ROW_GROUP
        for start in range(0, whole, ROW_GROUP):
            group = table.slice(start, min(ROW_GROUP, whole - start))
            self._parquet.write_table(group.combine_chunks(), row_group_size=ROW_GROUP)
        self._waiting = [table.slice(whole)] if whole < len(table) else []
        self._waiting_rows = len(table) - whole


def table_of(embedded: Embedded, shard_id: str, schema: pa.Schema) -> pa.Table:
    """A batch as an Arrow table of `arrow_schema`."""
    rows = embedded.batch.rows
    samples = [row.sample for row in rows]
    places = [sample.place for sample in samples]
    plain: dict[str, list[Any]] = {
        "key": [_storable(sample.key) for sample in samples],
        "shard": [shard_id] * len(rows),
        "caption": [
            _storable(sample.captions[0]) if sample.captions else None for sample in samples
        ],
        "captions": [[_storable(caption) for caption in sample.captions] for sample in samples],
        "json": [None if sample.json is None else _storable(sample.json) for sample in samples],
        "width": [row.width for row in rows],
        "height": [row.height for row in rows],
        "sha256": [row.sha256 for row in rows],
        "member": [place and _storable(place.member) for place in places],
        "offset": [place and place.offset for place in places],
        "size": [place and place.size for place in places],
    }
    arrays = []
    for column in schema:
        if column.name in COLUMNS:
            vectors = getattr(embedded, column.name)
            arrays.append(_vector_array(vectors, embedded.has[column.name], column.type))
        else:
            arrays.append(pa.array(plain[column.name], type=column.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def _vector_array(vectors: np.ndarray, has: np.ndarray, kind: pa.DataType) -> pa.Array:
    flat = pa.array(vectors.astype(np.float16).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, type=kind, mask=pa.array(~has))


def _storable(text: str) -> str:
    """Text as UTF-8 can hold it: Parquet has no lone surrogates (names that are not UTF-8 have)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    return text


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
        """Mapped, or read by ranges, for a look at the file's metadata. The caller closes it."""
        return _open(self.folder, self.shard_id)

    def group_count(self) -> int:
        """How many row groups there are."""
        with self.open() as file:
            return file.num_row_groups

    def read(self, columns: list[str] | None = None) -> pa.Table:
        """Whole columns, in row order. Raises CollectionError where the file is damaged."""
        with self.open() as file, _told_if_damaged(self.folder, self.shard_id):
            return file.read(columns=columns)

    def groups(
        self, columns: list[str], numbers: Iterable[int] | None = None
    ) -> Iterator[pa.Table]:
        """The same row group by row group, in bounded memory; `numbers` picks some of them."""
        with self.open() as file:
            for number in range(file.num_row_groups) if numbers is None else numbers:
                with _told_if_damaged(self.folder, self.shard_id):
                    group = file.read_row_group(number, columns)
                yield group

    def row(self, key: str, columns: list[str] | None = None) -> pa.Table | None:
        """The row of one sample, a table of one row; None where the shard has none of that key.

        Reads one row group, which the statistics of `key` point at; where keys are not in order,
        the keys of every group that could hold it."""
        key = _storable(key)
        with self.open() as file, _told_if_damaged(self.folder, self.shard_id):
            for group in _groups_with(file.metadata, key):
                keys = file.read_row_group(group, ["key"], use_threads=False)["key"]
                place = pc.index(keys, key).as_py()
                if place >= 0:
                    return _row(file, group, place, columns)
        return None

    def vectors(self, column: str) -> tuple[np.ndarray, np.ndarray]:
        """One vector column: (rows, D) float16, zero where null, and which rows have it, (rows,)
        bool."""
        return vectors_of(self.read([column])[column])


def vectors_of(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """A vector column as (n, D) float16, zero where null, and which rows have one, (n,) bool."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # an empty column stays chunked
        array = (
            pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], type=array.type)
        )
    has = np.asarray(array.is_valid())
    flat = array.values.slice(
        array.offset * array.type.list_size, len(array) * array.type.list_size
    )
    vectors = flat.to_numpy(zero_copy_only=False).reshape(len(array), array.type.list_size)
    if not has.all():
        vectors = np.where(has[:, None], vectors, np.float16(0))
    return vectors, has


def _row(file: pq.ParquetFile, group: int, place: int, columns: list[str] | None) -> pa.Table:
    """One row of a group. What lies behind it is not decoded, hence the small batches."""
    batches = file.iter_batches(_STEP, [group], columns, use_threads=False)
    batch = next(itertools.islice(batches, place // _STEP, None))
    return pa.Table.from_batches([batch.slice(place % _STEP, 1)])


def _groups_with(metadata: pq.FileMetaData, key: str) -> Iterator[int]:
    """The row groups that may hold `key`, by the least and greatest key of each."""
    for number in range(metadata.num_row_groups):
        keys = metadata.row_group(number).column(0)
        # Keys of more than some thousand bytes are left out of the statistics.
        told = keys.statistics if keys.is_stats_set and keys.statistics.has_min_max else None
        if told is None or told.min <= key <= told.max:
            yield number


def parquet_name(shard_id: str) -> str:
    return f"embeddings/{shard_id}.parquet"


def embeddings(folder: Folder) -> list[EmbeddingFile]:
    """The files of the shards that are done, by shard id. A file whose ledger disagrees is left
    out."""
    names = [name for name in folder.list("embeddings") if name.endswith(".parquet")]
    shard_ids = [name.removeprefix("embeddings/").removesuffix(".parquet") for name in names]
    found = folder.each(lambda shard_id: find_embedding(folder, shard_id), shard_ids)
    return [file for file in found if file is not None]


def find_embedding(folder: Folder, shard_id: str) -> EmbeddingFile | None:
    """The shard's file if the shard is done: the file is there and its ledger agrees with its
    footer."""
    if not folder.exists(parquet_name(shard_id)):
        return None
    footer = read_footer(folder, shard_id)
    if not footer.agrees_with(read_entry(folder, shard_id)):
        return None
    return EmbeddingFile(folder, footer)


def read_footer(folder: Folder, shard_id: str) -> Footer:
    """What the file says of itself; raises CollectionError when it is damaged or not ours."""
    where = shown(folder.url_of(parquet_name(shard_id)))
    with _open(folder, shard_id) as file:
        told = (file.metadata.metadata or {}).get(_FOOTER_KEY)
    if told is None:
        raise CollectionError(
            where, expected="a Parquet file written by chiasm", found="no chiasm footer"
        )
    fields: dict[str, Any] = json.loads(told)
    if fields.get("schema") != SCHEMA:
        raise CollectionError(
            where, expected=f"schema version {SCHEMA}", found=str(fields.get("schema"))
        )
    return Footer(source=Shard(**fields.pop("source")), **fields)


def _open(folder: Folder, shard_id: str) -> pq.ParquetFile:
    with _told_if_damaged(folder, shard_id):
        file = folder.open_random(parquet_name(shard_id))
        # Of a store, the columns of a row group come in few ranges, not in one a column.
        remote = folder.local is None
        return pq.ParquetFile(file, pre_buffer=remote, page_checksum_verification=True)


@contextlib.contextmanager
def _told_if_damaged(folder: Folder, shard_id: str) -> Iterator[None]:
    """Around reading only. Arrow tells damage as ArrowInvalid or, like a disk, as OSError."""
    where = shown(folder.url_of(parquet_name(shard_id)))
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise StorageError(where, found=str(error)) from error
        raise CollectionError(
            where,
            expected="a whole Parquet file",
            found=str(error).splitlines()[0],
            do="delete it and run chiasm embed again",
        ) from error

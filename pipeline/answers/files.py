"""The Parquet file of a shard's answers: written, found, read."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from chiasm.pipeline.collection import storable
from chiasm.pipeline.errors import CollectionError, StorageError
from chiasm.pipeline.records import Shard
from chiasm.pipeline.storage import Folder, display_name
from chiasm.pipeline.stored_records import read_record

FOLDER = "answers"
FOLDERS = ("", "runs", FOLDER, "shards")  # where a run can leave temporaries
FOOTER_KEY = b"chiasm"
ROW_GROUP = 256  # rows in memory, each with a caption of up to read.max_text_bytes

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        ("text", pa.string()),
        ("answer", pa.string()),
        ("confidence", pa.float64()),
        ("truncated", pa.int64()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


@dataclass(frozen=True)
class AnswersFooter:
    """What a file says of itself, stored as JSON under the key `chiasm` of its metadata.

    samples: of the shard. answers: rows with one. reasons: rows without one, by reason. lacking:
    how many of these lack the picture or the caption that the task is about. uncaptioned: samples
    without a caption that got an answer. damage: why the rest of the shard is lost, None where
    nothing is.
    """

    source: Shard
    edition: str
    task: str
    language: str | None
    question: str | None
    model: str
    fingerprint: str
    samples: int
    answers: int
    reasons: Mapping[str, int] = field(default_factory=dict)
    lacking: int = 0
    uncaptioned: int = 0
    damage: str | None = None
    schema: int = 1

    @property
    def unanswered(self) -> int:
        """Rows without an answer."""
        return sum(self.reasons.values())


def answers_name(shard_id: str) -> str:
    """The name of a shard's answers. pandas, pyarrow and Spark pass over names that begin with `_`
    or `.`: a mark stands before such an id, as in a collection."""
    mark = "" if re.match("[A-Za-z0-9]", shard_id) else "s~"
    return f"{FOLDER}/{mark}{shard_id}.parquet"


class AnswersWriter:
    """Writes one shard's answers under a temporary name; `commit` makes them the shard's file.

    Used in a `with`: leaving it without a commit leaves nothing behind. Nothing in a file depends
    on when or where it was written."""

    def __init__(self, folder: Folder, shard: Shard, run_id: str) -> None:
        self.shard = shard
        self._file = folder.create(answers_name(shard.id), run_id)
        self._parquet = pq.ParquetWriter(
            self._file, SCHEMA, compression="zstd", write_page_checksum=True
        )
        self._rows: list[dict[str, Any]] = []

    def __enter__(self) -> AnswersWriter:
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

    def write(self, key: str, **fields: Any) -> None:
        """Take a row; fields: of SCHEMA, those that are not null."""
        row = {"key": key, "shard": self.shard.id} | fields
        row = {k: storable(v) if isinstance(v, str) else v for k, v in row.items()}
        self._rows.append(row)
        if len(self._rows) == ROW_GROUP:
            self._flush()

    def commit(self, footer: AnswersFooter) -> None:
        """Write what is left and the footer, flush to the disk, give the file its name."""
        self._flush()
        text = json.dumps(asdict(footer), sort_keys=True)
        self._parquet.add_key_value_metadata({FOOTER_KEY.decode(): text})
        self._parquet.close()
        self._file.commit()

    def _flush(self) -> None:
        if self._rows:
            self._parquet.write_table(pa.Table.from_pylist(self._rows, schema=SCHEMA))
            self._rows = []


def find_answers(folder: Folder, shard_id: str) -> AnswersFooter | None:
    """What the file of a shard's answers says of itself; None where there is none, or a damaged
    one, which is then written anew."""
    name = answers_name(shard_id)
    if not folder.exists(name):
        return None
    try:
        with _open(folder, name) as file:
            data = (file.metadata.metadata or {}).get(FOOTER_KEY, b"")
        where = display_name(folder.url_of(name))
        return read_record(data, where, AnswersFooter, what="answers about a shard")
    except CollectionError:
        return None


def read_answers(
    folder: Folder, shard_id: str, columns: list[str]
) -> Generator[dict[str, Any], None, None]:
    """The rows of a shard's file, in its order, in bounded memory. CollectionError for a damaged
    one."""
    name = answers_name(shard_id)
    with _open(folder, name) as file:
        batches = file.iter_batches(ROW_GROUP, columns=columns, use_threads=False)
        while True:
            with _naming_damage(folder, name):
                batch = next(batches, None)
            if batch is None:
                return
            yield from batch.to_pylist()


def unanswered(folder: Folder, shard_id: str, most: int) -> list[dict[str, Any]]:
    """The first rows of a shard that have no answer though nothing was lacking; none where it has
    no file."""
    if not folder.exists(answers_name(shard_id)):
        return []
    rows = read_answers(folder, shard_id, ["key", "stage", "reason", "detail"])
    with contextlib.closing(rows):
        wanted = (row for row in rows if row["reason"] and row["stage"])
        return list(itertools.islice(wanted, most))


@contextlib.contextmanager
def _open(folder: Folder, name: str) -> Iterator[pq.ParquetFile]:
    with folder.open_seekable(name) as source:
        with _naming_damage(folder, name):
            file = pq.ParquetFile(source, page_checksum_verification=True)
        with file:
            yield file


@contextlib.contextmanager
def _naming_damage(folder: Folder, name: str) -> Iterator[None]:
    """CollectionError for damage, StorageError for a failing disk. Arrow raises ArrowInvalid for
    damage or an OSError, which has no errno then."""
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        where = display_name(folder.url_of(name))
        if isinstance(error, OSError) and error.errno is not None:
            raise StorageError(where, found=str(error)) from error
        raise CollectionError(
            where,
            expected="a whole Parquet file",
            found=str(error).splitlines()[0],
            do="delete it and run the same command again",
        ) from error

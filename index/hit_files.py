"""Queries of a file -> a Parquet file with a row for every result (docs/formats.md).

A batch of queries is read, answered and written before the next one is read, so memory does not
depend on how many there are. All are parsed once before the first is answered: what is no query is
refused before anything was computed. The file of results has its name only once it is whole.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from chiasm.index.output_files import file_to_write
from chiasm.index.query_files import Numbered, place_of, read_queries, with_place
from chiasm.index.results import Answer, Result
from chiasm.index.retrieve import Searcher
from chiasm.pipeline.errors import SourceError, UsageError
from chiasm.pipeline.storage import Folder

BATCH = 64  # queries answered together: as many texts as are encoded at once
ROW_GROUP = 8192  # results that wait to be written together: some 10 MB
SCHEMA = 1
FOOTER_KEY = "chiasm"

HIT_COLUMNS = pa.schema(
    [
        ("query", pa.int64()),
        ("text", pa.string()),
        ("rank", pa.int32()),
        ("id", pa.string()),
        ("key", pa.string()),
        ("shard", pa.string()),
        ("score", pa.float64()),
        ("scores", pa.map_(pa.string(), pa.float64())),
        ("reranked", pa.bool_()),
        ("duplicates", pa.list_(pa.string())),
        ("caption", pa.string()),
        ("meta", pa.string()),
        ("url", pa.string()),
        ("member", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("p_absent", pa.float64()),
    ]
)


@dataclass(frozen=True, slots=True)
class HitCounts:
    """What a file of results has: how many queries were answered, and how many rows it has."""

    queries: int
    hits: int


def search_file(
    searcher: Searcher,
    queries: str | Path,
    to: str | Path,
    *,
    audit: float | None = None,
    **defaults: Any,
) -> HitCounts:
    """Answer the queries of a file and write their results to `to`, a path or URL that ends in
    `.parquet`.

    queries, defaults: as of `read_queries`. audit: the share of the queries whose recall is
    measured, see `OpenIndex.audit`, and stored; it changes no answer of the file. Raises UsageError
    for a query that cannot be answered, by its number, and for a file in the collection or that of
    the queries, StorageError where the results cannot be written. Then `to` is what it was.
    """
    if not str(to).lower().endswith(".parquet"):
        expected = "a name that ends in .parquet"
        raise UsageError(str(to) or "''", expected=expected, found="another one")
    folder, name = file_to_write(str(to), searcher.collection.folder, {"the queries": str(queries)})
    recent = searcher.audits.recent
    for _ in read_queries(queries, **defaults):
        pass  # all of them are queries
    with HitWriter(folder, name) as writer:
        numbered = read_queries(queries, **defaults)
        while batch := list(islice(numbered, BATCH)):
            writer.write([number for number, _ in batch], _answer(searcher, batch, queries))
            if audit is not None and recent.is_full_of(audit):
                searcher.audit(audit, raise_probes=False, save=True)
        identity = searcher.collection.identity
        made_by = {"encoder": identity.encoder, "fingerprint": identity.fingerprint}
        counts = writer.commit(made_by)
    if audit is not None:  # the results are there, whatever becomes of the audit
        searcher.audit(audit, raise_probes=False, save=True)
    return counts


def _answer(searcher: Searcher, batch: Sequence[Numbered], path: str | Path) -> Sequence[Answer]:
    """The answers of a batch; an error names the query that has it."""
    try:
        return searcher.search_many([query for _, query in batch])
    except (UsageError, SourceError):
        for number, query in batch:
            try:
                searcher.search_many([query])
            except (UsageError, SourceError) as error:
                raise with_place(place_of(path, number), error) from error
        raise


class HitWriter:
    """Writes results as Parquet under a temporary name; `commit` gives the file its own. Used in a
    `with`: leaving it without a commit leaves nothing behind."""

    def __init__(self, folder: Folder, name: str) -> None:
        self._file = folder.create(name, "")
        self._parquet = pq.ParquetWriter(
            self._file, HIT_COLUMNS, compression="zstd", write_page_checksum=True
        )
        self._waiting: list[dict[str, Any]] = []
        self._queries = self._hits = 0

    def __enter__(self) -> HitWriter:
        return self

    def __exit__(self, *failure: Any) -> None:
        # An abandoned pyarrow writer would close itself when collected, into a file that is gone.
        self._parquet.is_open = False
        self._file.__exit__(*failure)

    def write(self, numbers: Iterable[int], answers: Iterable[Answer]) -> None:
        """Take the answers of the queries with these numbers."""
        for number, answer in zip(numbers, answers, strict=True):
            self._queries += 1
            for result in answer:
                self._waiting.append(_row(number, answer, result))
                if len(self._waiting) >= ROW_GROUP:
                    self._flush()

    def commit(self, made_by: dict[str, Any]) -> HitCounts:
        """Write what is left and the footer, give the file its name."""
        self._flush()
        counts = HitCounts(self._queries, self._hits)
        footer = {"schema": SCHEMA, **dataclasses.asdict(counts), **made_by}
        self._parquet.add_key_value_metadata({FOOTER_KEY: json.dumps(footer)})
        self._parquet.close()
        self._file.commit()
        return counts

    def _flush(self) -> None:
        if self._waiting:
            self._parquet.write_table(pa.Table.from_pylist(self._waiting, HIT_COLUMNS))
            self._hits += len(self._waiting)
            self._waiting = []


def _row(number: int, answer: Answer, result: Result) -> dict[str, Any]:
    """A result as a row of HIT_COLUMNS."""
    plain = result.as_json()
    row = {name: plain[name] for name in HIT_COLUMNS.names if name in plain}
    text = answer.query.text
    return {
        **row,
        "query": number,
        # A lone surrogate, which JSON can hold and Parquet cannot, as its escape.
        "text": None if text is None else text.encode("utf-8", "backslashreplace").decode(),
        "scores": list(result.scores.items()),
        "reranked": answer.is_reranked(result),
        "duplicates": list(result.duplicates),
        "meta": json.dumps(result.meta),
        "p_absent": answer.p_absent,
    }

"""Files of queries -> queries, one after the other; a line that is no query is refused by its
number."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from chiasm.index.output_files import folder_and_name
from chiasm.index.queries import Query, Term
from chiasm.index.sizes import format_size
from chiasm.pipeline.errors import ChiasmError, SourceError, UsageError
from chiasm.pipeline.storage import canonical_url, open_stream

PARQUET_ROWS = 64  # in memory at once
MAX_LINE = 16 << 20  # bytes of a line: a vector as JSON takes less than 1 MB

# A query and its number: of its line, or of its row in a Parquet file, from 1.
Numbered = tuple[int, Query]


def read_queries(path: str | Path, **defaults: Any) -> Iterator[Numbered]:
    """The queries of a file, a path or URL, by its suffix.

    .txt: a text a line, in UTF-8. .jsonl: a JSON object a line with fields of `Query`; `vector` is
    a list of numbers, `terms` a list of objects with the fields of `Term`. .parquet: a row a query,
    with a column `text` or `vector`. Empty lines are passed over. defaults: fields of `Query` where
    a query does not have them. Raises UsageError for what is no query, by its number, SourceError
    where the file cannot be read.
    """
    reader = READERS.get(Path(str(path)).suffix.lower())
    if reader is None:
        raise UsageError(
            str(path), expected=f"a file of queries: {', '.join(READERS)}", found="another name"
        )
    for number, fields in reader(str(path)):
        yield number, _query(fields, defaults, place_of(path, number))


def place_of(path: str | Path, number: int) -> str:
    unit = "row" if str(path).lower().endswith(".parquet") else "line"
    return f"{unit} {number} of {path}"


def _lines(path: str) -> Iterator[tuple[int, str]]:
    with open_stream(canonical_url(path)) as stream:
        number = 0
        while data := stream.readline(MAX_LINE + 1):
            number += 1
            place = place_of(path, number)
            if len(data) > MAX_LINE:
                raise UsageError(place, expected=f"at most {format_size(MAX_LINE)}", found="more")
            try:
                text = data.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise UsageError(place, expected="text in UTF-8", found=error.reason) from error
            if "\0" in text:
                raise UsageError(place, expected="text in UTF-8", found="a null character")
            if text:
                yield number, text


def _text_lines(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, text in _lines(path):
        yield number, {"text": text}


def _json_lines(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, text in _lines(path):
        place = place_of(path, number)
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UsageError(place, expected="a JSON object", found=str(error)[:80]) from error
        if not isinstance(fields, dict):
            found = f"a JSON {type(fields).__name__}"
            raise UsageError(place, expected="a JSON object", found=found)
        yield number, _from_json(fields, place)


def _from_json(fields: dict[str, Any], place: str) -> dict[str, Any]:
    """The fields of a `Query` from those of a JSON object; null is as if it were not there."""
    fields = _known(fields, Query, place)
    if "vector" in fields:
        fields["vector"] = _vector(fields["vector"], place)
    terms = fields.get("terms")
    if isinstance(terms, list) and all(isinstance(term, dict) for term in terms):
        with_place = [_known(term, Term, f"{place}: terms") for term in terms]
        fields["terms"] = [_made(Term, term, place) for term in with_place]
    return fields


def _known(fields: dict[str, Any], kind: type, place: str) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(kind)]
    unknown = [name for name in fields if name not in names]
    if unknown:
        expected = f"only fields of a {kind.__name__.lower()}: {', '.join(names)}"
        raise UsageError(place, expected=expected, found=ascii(unknown[0])[:80])
    return {name: value for name, value in fields.items() if value is not None}


def _vector(value: Any, place: str) -> np.ndarray:
    # By type, since numpy makes numbers of texts and of true. A null is NaN, refused later.
    kinds = {*map(type, value)} - {type(None)} if isinstance(value, list) else {str}
    if not value or not all(issubclass(kind, Real) and kind is not bool for kind in kinds):
        raise UsageError(place, expected="a vector as a list of numbers", found="something else")
    try:
        with np.errstate(over="ignore"):  # infinity is refused later
            return np.asarray(value, dtype=np.float32)
    except OverflowError:  # a whole number that no float holds
        return np.full(len(value), np.inf, np.float32)


def _rows(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a Parquet file, a batch of them in memory."""
    folder, name = folder_and_name(path)
    if folder.stat(name) is None:
        raise SourceError(path, expected="a file", found="none")
    try:
        with folder.open_seekable(name) as file:
            # Not read ahead: a row group may be the whole file.
            table = pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
            columns = [name for name in ("text", "vector") if name in table.schema_arrow.names]
            if len(columns) != 1:
                found = "both" if columns else "neither"
                raise UsageError(path, expected="a column text or vector", found=found)
            number = 0
            for batch in table.iter_batches(PARQUET_ROWS, columns=columns):
                for value in batch.column(0):
                    number += 1
                    place = place_of(path, number)
                    yield number, {columns[0]: _cell(value, columns[0], place)}
    except pa.ArrowException as error:
        raise UsageError(path, expected="a Parquet file", found=str(error)[:80]) from error


def _cell(value: pa.Scalar, column: str, place: str) -> Any:
    if not value.is_valid:
        raise UsageError(place, expected=f"a {column}", found="null")
    return value.as_py() if column == "text" else _vector(value.as_py(), place)


READERS = {".txt": _text_lines, ".jsonl": _json_lines, ".parquet": _rows}


def _query(fields: dict[str, Any], defaults: dict[str, Any], place: str) -> Query:
    return _made(Query, {**defaults, **fields}, place)


def _made(kind: type, fields: dict[str, Any], place: str) -> Any:
    try:
        return kind(**fields)
    except TypeError as error:
        raise UsageError(f"{place}: {error}") from error
    except UsageError as error:
        raise with_place(place, error) from error


def with_place(place: str, error: ChiasmError) -> ChiasmError:
    """The error with the place of its query."""
    return type(error)(
        f"{place}: {error.what}", expected=error.expected, found=error.found, do=error.do
    )

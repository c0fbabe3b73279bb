"""Rows to train with, and queries: to learn from, to tune on and to report on.

The three sets of queries are disjoint by row and by text: no row's captions or pictures are in two
of them, and a text that several rows have is one query.

Text queries. Texts and pictures lie apart in most spaces, so a column's own vectors are the wrong
sample of what people ask. For `image` a row's caption is a query that did not make its vector. In
the vectors of `text` and `joint` the first caption is inside, so another caption of the row is the
query. A file of queries replaces both. Where there is none of these, pictures are the queries,
and the report says so.

Picture queries are the pictures of rows. People ask with pictures that the collection does not
have; a row asked for with its own picture is found by any index, at rank one. So a query's own row
counts neither as an answer nor as a miss (`without_own` in query/truth.py).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa

from chiasm.index.build.covered import CoveredShards
from chiasm.index.build.sampled_rows import sampled_rows
from chiasm.index.queries import Query
from chiasm.index.query import encode_queries
from chiasm.pipeline.collection import vectors_of
from chiasm.pipeline.encoders import JOINT, Encoder
from chiasm.pipeline.errors import EncoderError, UsageError
from chiasm.pipeline.records import IMAGE, TEXT

LOG = logging.getLogger(__name__)
TUNE = REPORT = 1000  # queries; the promise's width falls with the square root of their number
TUNE_PICTURES = 500
LEARN = 20_000  # queries that cost no encoding; more change no recall that can be measured
# Pictures for ten queries to learn from. A projection that was fitted to texts alone may keep
# nothing of what pictures differ in; a tenth of pictures costs text queries nothing measurable.
LEARN_PICTURES = 0.1
LEARN_ENCODED = 4000  # queries that have to be encoded, some seconds on a processor
ENCODED_AT_ONCE = 64
LEAST = 300  # text queries: a third of them for each use
CHECKED = 16  # stored captions that are encoded as queries, to see whether that is the same
SAME_COSINE = 0.999


@dataclass(frozen=True)
class Queries:
    """vectors (Q, D) float32. own (Q,) float32: the score of the row that a query is the picture
    of, NaN for queries that are of no row or may find it."""

    vectors: np.ndarray
    own: np.ndarray

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, some: slice) -> Queries:
        return Queries(self.vectors[some], self.own[some])

    @classmethod
    def of(cls, vectors: np.ndarray) -> Queries:
        return cls(vectors, np.full(len(vectors), np.nan, np.float32))


@dataclass(frozen=True)
class QuerySets:
    """learn (m, D) float32, texts and some pictures. tune, report: by kind, text and picture; costs
    are those of the first kind. source: where text queries come from, for people."""

    learn: np.ndarray
    tune: dict[str, Queries]
    report: dict[str, Queries]
    source: str

    @property
    def kind(self) -> str:
        return next(iter(self.tune))


class ColumnView(Protocol):
    """What tuning sees of a column. rows: with a vector; dim: its width D."""

    column: str
    rows: int
    dim: int

    def sample(self, wanted: int) -> np.ndarray:
        """About `wanted` rows drawn evenly over the shards, (n, D) float32."""
        ...

    def query_sets(self) -> QuerySets: ...


@dataclass
class CollectionView:
    """A column of a collection. rows: with a vector. encoder: loads the collection's, called where
    texts have to be encoded. queries: a file of queries, one a line; "" for the captions."""

    covered: CoveredShards
    column: str
    rows: int
    encoder: Callable[[], Encoder]
    queries: str = ""
    dim: int = field(init=False)

    def __post_init__(self) -> None:
        self.dim = self.covered.identity.dim

    def sample(self, wanted: int) -> np.ndarray:
        """The same files give the same vectors."""
        tables = sampled_rows(self.covered, self.column, wanted, [self.column], seed=0)
        rows = np.empty((sum(map(len, tables)), self.dim), np.float32)
        # In random places, so that any part of it is a sample, too.
        places = np.random.default_rng(0).permutation(len(rows))
        done = 0
        for table in tables:
            rows[places[done : done + len(table)]] = vectors_of(table[self.column])[0]
            done += len(table)
        return rows

    def query_sets(self) -> QuerySets:
        """Raises UsageError for a file of queries that cannot be used."""
        lines = query_lines(self.queries) if self.queries else None
        columns = [self.column, IMAGE, TEXT, "captions"]
        columns = [
            c for c in dict.fromkeys(columns) if c in (*self.covered.identity.columns, "captions")
        ]
        wanted = LEARN + TUNE + REPORT
        tables = sampled_rows(self.covered, self.column, wanted, columns, 1, self._have_text)
        rows = pa.concat_tables(tables)
        rows = rows.take(np.random.default_rng(2).permutation(len(rows)))
        pictures, stand_in = self._pictures(rows)
        if lines is not None:
            texts, source = self._encoded(lines), f"text queries: {self.queries}"
            if len(texts) < LEAST:
                raise _few_lines(self.queries, len(texts))
            return _split_apart(Queries.of(texts), pictures, source + stand_in)
        vectors, has, source = self._texts(rows)
        if 0 < (found := np.count_nonzero(has)) < min(LEAST, np.count_nonzero(pictures[1])):
            has, source = np.zeros_like(has), f"picture queries: {found} different captions of rows"
        return _split(vectors, has, pictures, source + stand_in)

    def _have_text(self, rows: pa.Table) -> np.ndarray:
        """Which rows have a caption that is a query, (n,) bool: where few rows have, these."""
        counts = rows["captions"].combine_chunks().value_lengths().fill_null(0)
        return counts.to_numpy(zero_copy_only=False) > int(self.column in (TEXT, JOINT))

    def _pictures(self, rows: pa.Table) -> tuple[tuple[Queries, np.ndarray], str]:
        """The queries that the rows' pictures are, in their order, and which rows have one, (n,)
        bool; the column's own vectors where there are too few pictures to tune with. A note on
        those."""
        source = IMAGE if IMAGE in rows.column_names else self.column
        vectors, has = vectors_of(rows[source])
        own_count = len(rows) - rows[self.column].null_count
        if np.count_nonzero(has) < min(LEAST, own_count):
            source = self.column
            vectors, has = vectors_of(rows[source])
        vectors = vectors.astype(np.float32)
        own = np.full(len(vectors), np.nan, np.float32)
        if self.column in (source, JOINT):
            stored = _vectors(rows, self.column)
            own = np.einsum("nd,nd->n", vectors, stored).astype(np.float32)
        note = "" if source == IMAGE else f"; vectors of {source} stand in for pictures"
        return (Queries(vectors, own), has), note

    def _texts(self, rows: pa.Table) -> tuple[np.ndarray, np.ndarray, str]:
        """A text query for each row: vectors (n, D), which rows have one (n,), and the source."""
        captions = rows["captions"].to_pylist()
        if self.column in (TEXT, JOINT):
            others = [(own or [])[1:] for own in captions]
            texts, source = [next(iter(some), "") for some in others], "other captions of rows"
        else:
            texts, source = [next(iter(own or []), "") for own in captions], "captions of rows"
            if TEXT in rows.column_names:
                vectors, has = vectors_of(rows[TEXT])
                has &= _first_of_each(texts)
                if has.any() and (note := self._stored_are_queries(texts, vectors, has)):
                    return vectors.astype(np.float32), has, f"text queries: {source}{note}"
        has = np.array([text.strip() != "" for text in texts]) & _first_of_each(texts)
        if not has.any():
            return (
                np.zeros((len(texts), self.dim), np.float32),
                has,
                f"picture queries: no {source}",
            )
        numbers = np.flatnonzero(has)[: LEARN_ENCODED + TUNE + REPORT]
        vectors = np.zeros((len(texts), self.dim), np.float32)
        try:
            vectors[numbers] = self._encoded([texts[number] for number in numbers], keep=True)
        except EncoderError as error:
            LOG.warning("%s; pictures stand in for text queries", error)
            return vectors, np.zeros(len(texts), bool), "picture queries: no encoder for captions"
        has = np.any(vectors, axis=1)
        return vectors, has, f"text queries: {source}, encoded"

    def _stored_are_queries(self, texts: list[str], vectors: np.ndarray, has: np.ndarray) -> str:
        """A note on the stored vectors of captions where they are those that the encoder gives
        queries, "" where it gives others."""
        numbers = [number for number in np.flatnonzero(has) if texts[number].strip()][:CHECKED]
        if not numbers:
            return ""
        try:
            encoded = self._encoded([texts[number] for number in numbers], keep=True)
        except EncoderError as error:
            LOG.warning("%s; the stored vectors of captions stand in for text queries", error)
            return ", as they are stored: the encoder could not be loaded"
        stored = vectors[numbers].astype(np.float32)
        same = (np.einsum("nd,nd->n", encoded, stored) >= SAME_COSINE).all()
        return ", as they are stored" if same else ""

    def _encoded(self, texts: Sequence[str], keep: bool = False) -> np.ndarray:
        """Query vectors of texts; of one that the encoder refuses zeros, or none without `keep`."""
        encoder = self.encoder()
        vectors = np.zeros((len(texts), self.dim), np.float32)
        for start in range(0, len(texts), ENCODED_AT_ONCE):
            some = texts[start : start + ENCODED_AT_ONCE]
            try:
                encoded = encode_queries([Query(text) for text in some], encoder, self.dim)
            except UsageError:
                encoded = np.concatenate([self._alone(text, encoder) for text in some])
            vectors[start : start + len(some)] = encoded
        return vectors if keep else vectors[vectors.any(axis=1)]

    def _alone(self, text: str, encoder: Encoder) -> np.ndarray:
        try:
            return encode_queries([Query(text)], encoder, self.dim)
        except UsageError:
            return np.zeros((1, self.dim), np.float32)


def query_lines(path: str) -> list[str]:
    """The queries of a file, one a line; UsageError where there are too few."""
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        found = error.strerror if isinstance(error, OSError) else "bytes that are no UTF-8"
        expected = "a text file of queries, one a line"
        raise UsageError(f"--queries {path}", expected=expected, found=str(found)) from error
    lines = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if len(lines) < LEAST:
        raise _few_lines(path, len(lines))
    return lines


def _first_of_each(texts: Sequence[str]) -> np.ndarray:
    """Which texts are not the same as one before, (n,) bool; rows without a text have queries of
    their own."""
    known: set[str] = set()
    first = np.ones(len(texts), bool)
    for number, text in enumerate(map(str.strip, texts)):
        first[number] = not text or text not in known
        known.add(text)
    return first


def _few_lines(path: str, found: int) -> UsageError:
    return UsageError(
        f"--queries {path}",
        expected=f"{LEAST} different queries or more, one a line, to learn, tune and report",
        found=str(found),
    )


def _vectors(rows: pa.Table, column: str) -> np.ndarray:
    return vectors_of(rows[column])[0].astype(np.float32)


def _split(
    texts: np.ndarray, has: np.ndarray, pictures: tuple[Queries, np.ndarray], source: str
) -> QuerySets:
    """Sets by row: text queries of the rows that have one, pictures of the same rows."""
    pictured, has_picture = pictures
    rows = np.flatnonzero(has) if has.any() else np.flatnonzero(has_picture)
    tune, report, learn = _thirds(rows, TUNE, REPORT)

    def kinds(some: np.ndarray) -> dict[str, Queries]:
        seen = some[has_picture[some]][: TUNE_PICTURES if some is tune else None]
        picture = {"picture": Queries(pictured.vectors[seen], pictured.own[seen])}
        return ({"text": Queries.of(texts[some])} if has.any() else {}) | picture

    learn = learn[:LEARN]
    some = pictured.vectors[learn[has_picture[learn]]]
    learned = _with_pictures(texts[learn], some) if has.any() else some
    return QuerySets(learned, kinds(tune), kinds(report), source)


def _split_apart(texts: Queries, pictures: tuple[Queries, np.ndarray], source: str) -> QuerySets:
    """Sets of text queries that are of no row, and of the rows' pictures."""
    rng = np.random.default_rng(3)
    pictured, has_picture = pictures
    tune, report, learn = _thirds(rng.permutation(len(texts)), TUNE, REPORT)
    seen_tune, seen_report, others = _thirds(np.flatnonzero(has_picture), TUNE_PICTURES, REPORT)

    def kinds(some: np.ndarray, seen: np.ndarray) -> dict[str, Queries]:
        picture = Queries(pictured.vectors[seen], pictured.own[seen])
        return {"text": Queries.of(texts.vectors[some]), "picture": picture}

    learned = _with_pictures(texts.vectors[learn], pictured.vectors[others])
    return QuerySets(learned, kinds(tune, seen_tune), kinds(report, seen_report), source)


def _with_pictures(texts: np.ndarray, pictures: np.ndarray) -> np.ndarray:
    count = math.ceil(LEARN_PICTURES * len(texts))
    return np.concatenate([texts, pictures[:count]])


def _thirds(
    numbers: np.ndarray, tune: int, report: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers to tune on and to report on, a third of all at the most for either, and the rest."""
    third = len(numbers) // 3
    tune, report = min(tune, third), min(report, third)
    return numbers[:tune], numbers[tune : tune + report], numbers[tune + report :]

"""Which rows an edit deletes: by key, by id, or by a filter (query/filters.py).

A selection gives, for each segment, the rows that it names. Keys and row numbers are compared by
Arrow over the mapped catalog, so that a thousand of them cost one pass over a column.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from chiasm.index.query import Filter
from chiasm.index.results import row_id
from chiasm.index.segments import Generation, Segment, rows_of_shards
from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.forget import match

_ID = re.compile(r"(?P<shard>.+)/(?P<row>[0-9]{1,9})@(?P<edition>[0-9a-f]{8})")


class Selection(Protocol):
    """Rows of a generation. names: what a person calls them by, none for a filter."""

    @property
    def names(self) -> frozenset[str]: ...

    def names_of(self, segment: Segment, rows: np.ndarray) -> set[str]:
        """Which of the names rows of a segment have, (rows,) bool."""
        ...

    def rows(self, segment: Segment) -> np.ndarray:
        """(rows,) bool."""
        ...

    def __str__(self) -> str:
        """What is selected, for messages."""
        ...


@dataclass(frozen=True)
class ByFilter:
    """Rows that a filter lets pass."""

    condition: Filter
    names: frozenset[str] = frozenset()

    def names_of(self, segment: Segment, rows: np.ndarray) -> set[str]:
        return set()

    def rows(self, segment: Segment) -> np.ndarray:
        return self.condition.rows(segment)

    def __str__(self) -> str:
        return f"the filter {self.condition.text}"


@dataclass(frozen=True)
class ByKey:
    """Rows of these keys, in all shards or in those of these ids. Keys are unique within a shard
    only."""

    keys: Sequence[str]
    shards: frozenset[str] | None = None

    @property
    def names(self) -> frozenset[str]:
        return frozenset(_strings(self.keys).to_pylist())

    def names_of(self, segment: Segment, rows: np.ndarray) -> set[str]:
        return set(segment.catalog.table()["key"].filter(pa.array(rows)).unique().to_pylist())

    def rows(self, segment: Segment) -> np.ndarray:
        found = np.zeros(len(segment), bool)
        keys, column = _strings(self.keys), segment.catalog.table()["key"]
        if self.shards is None:
            return _is_in(column, keys)
        for shard, rows in rows_of_shards(segment):
            if shard.shard in self.shards:
                part = column.slice(rows.start, shard.rows)
                found[rows] = _is_in(part, keys)
        return found

    def __str__(self) -> str:
        where = "" if self.shards is None else f" in shard {', '.join(sorted(self.shards))}"
        return _some("key", self.keys) + where


@dataclass(frozen=True)
class ById:
    """Rows of these ids, `<shard id>/<row>@<edition>`; UsageError for one of another form."""

    ids: Sequence[str]

    def __post_init__(self) -> None:
        for number, text in enumerate(self.ids, 1):
            if not _ID.fullmatch(text):
                raise UsageError(
                    f"id {number}", expected="SHARD/ROW@EDITION", found=repr(text[:80])
                )

    @property
    def names(self) -> frozenset[str]:
        return frozenset(
            row_id(shard, row, edition)
            for (shard, edition), rows in self._wanted.items()
            for row in rows
        )

    def names_of(self, segment: Segment, rows: np.ndarray) -> set[str]:
        return {
            row_id(shard.shard, row, shard.edition)
            for shard, part in rows_of_shards(segment)
            if rows[part].any()
            for row in segment.catalog.row_numbers(part)[rows[part]].tolist()
        }

    def rows(self, segment: Segment) -> np.ndarray:
        found = np.zeros(len(segment), bool)
        for shard, rows in rows_of_shards(segment):
            if numbers := self._wanted.get((shard.shard, shard.edition)):
                found[rows] = np.isin(segment.catalog.row_numbers(rows), numbers)
        return found

    @functools.cached_property
    def _wanted(self) -> dict[tuple[str, str], list[int]]:
        """Rows by shard and edition."""
        wanted: dict[tuple[str, str], list[int]] = defaultdict(list)
        for parts in filter(None, map(_ID.fullmatch, self.ids)):
            wanted[parts["shard"], parts["edition"]].append(int(parts["row"]))
        return wanted

    def __str__(self) -> str:
        return _some("id", self.ids)


def shards_named(generation: Generation, spec: str) -> frozenset[str]:
    """The ids of the indexed shards that a person means by an id, a path, a URL or a glob; empty
    where it names none."""
    urls = {shard.shard: shard.url for shard in generation.indexed_shards().values()}
    return frozenset(match(spec, urls))


def _is_in(column: pa.ChunkedArray, values: pa.Array) -> np.ndarray:
    """Which cells are among the values: (n,) bool."""
    return pc.call_function("is_in", [column], pc.SetLookupOptions(values)).to_numpy()


def _strings(texts: Iterable[str]) -> pa.Array:
    return pa.array([text.encode("utf-8", "backslashreplace").decode() for text in texts])


def _some(kind: str, names: Sequence[str]) -> str:
    return f"{kind} {names[0]}" if len(names) == 1 else f"any of {len(names):,} {kind}s"

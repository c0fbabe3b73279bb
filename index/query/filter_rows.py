"""Which rows of a segment pass a filter: DuckDB over the memory-mapped catalog, then a cache.

Only the fields that the filter names are read, and of the json only their leaves. DuckDB runs in
one thread, beside FAISS's: a million captions take it a fifth of a second, and rows come in order.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from chiasm.index.query.filter_fields import Path, read_column
from chiasm.index.query.filter_parse import LOCKED, load_duckdb, refused
from chiasm.index.segments import Segment

SECONDS = 30.0  # of all segments: a hundred times what a million rows take
# A segment gets no less: DuckDB forgets an interruption that comes before its query begins.
LEAST_SECONDS = 0.05
CACHE_BYTES = 256 << 20  # of bitmaps, a byte a row: some 250 filters of a million rows
CATALOG = "rows.arrow"


@dataclass(frozen=True)
class Filter:
    """A checked condition, as query/filters.py makes it; shared between threads.

    text: the condition written anew, the same for all spellings of it. sql, parameters: what
    DuckDB evaluates, over columns c0, c1, ... columns: their fields and kinds.
    """

    text: str
    sql: str
    parameters: tuple[Any, ...]
    columns: tuple[tuple[Path, str], ...]

    def rows_of(self, segments: Sequence[Segment]) -> list[np.ndarray]:
        """As `rows`, of each segment, within SECONDS in all."""
        until = time.monotonic() + SECONDS
        return [self.rows(segment, until - time.monotonic()) for segment in segments]

    def rows(self, segment: Segment, seconds: float | None = None) -> np.ndarray:
        """Which rows of a segment pass: (rows,) bool, read-only. Deleted rows may pass too.

        Raises UsageError where numbers overflow or it takes more than so many seconds, by default
        SECONDS; CollectionError for a field that has another kind in this segment.
        """
        if not len(segment):
            return np.zeros(0, bool)
        checksum = segment.record.files[CATALOG]
        key = (checksum.blake2b, self.text)
        passed = BITMAPS.get(key)
        if passed is None:
            passed = evaluate(self, segment.catalog.table(), seconds)
            passed.flags.writeable = False
            BITMAPS.put(key, passed)
        return passed


class BitmapCache:
    """The bitmaps that were used last, by the catalog's checksum and the filter's text: a segment
    that several generations share is evaluated once. One for the process, which so has one limit.
    Safe to share."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes, self.bytes = limit_bytes, 0
        self._bitmaps: OrderedDict[tuple[str, str], np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._bitmaps)

    def get(self, key: tuple[str, str]) -> np.ndarray | None:
        with self._lock:
            if key in self._bitmaps:
                self._bitmaps.move_to_end(key)
            return self._bitmaps.get(key)

    def put(self, key: tuple[str, str], bitmap: np.ndarray) -> None:
        with self._lock:
            if key in self._bitmaps:  # another thread was faster
                return
            self._bitmaps[key] = bitmap
            self.bytes += _size(key, bitmap)
            while self.bytes > self.limit_bytes:
                self.bytes -= _size(*self._bitmaps.popitem(last=False))


def _size(key: tuple[str, str], bitmap: np.ndarray) -> int:
    return bitmap.nbytes + len(key[1])


BITMAPS = BitmapCache(CACHE_BYTES)


def evaluate(condition: Filter, table: pa.Table, seconds: float | None = None) -> np.ndarray:
    """Which rows of a catalog's table pass: (rows,) bool. seconds: SECONDS where there are none."""
    seconds = SECONDS if seconds is None else max(LEAST_SECONDS, seconds)
    columns = {
        f"c{number}": read_column(table, path, kind)
        for number, (path, kind) in enumerate(condition.columns)
    }
    columns = columns or {"row": table["row"]}  # rows are counted by some column
    duckdb = load_duckdb()
    cursor = _connection().cursor()
    over = threading.Event()
    deadline = threading.Thread(target=_interrupt, args=(cursor, seconds, over), daemon=True)
    deadline.start()
    try:
        named = pa.Table.from_arrays(list(columns.values()), names=list(columns))
        cursor.from_arrow(named).create_view("catalog")  # `register` imports pandas, if it is there
        query = f"SELECT coalesce({condition.sql}, FALSE) AS passed FROM catalog"
        return cursor.execute(query, list(condition.parameters)).fetchnumpy()["passed"]
    except duckdb.InterruptException as error:
        expected = f"an answer within {seconds:.2g} s for {len(table):,} rows"
        raise refused(expected, f"none for {condition.text[:80]}") from error
    except duckdb.Error as error:
        found = str(error).partition("\n")[0]
        raise refused("a condition that can be evaluated", found) from error
    finally:
        over.set()
        deadline.join()  # at the end of a program its thread would keep DuckDB from being unloaded
        cursor.close()


def _interrupt(cursor: Any, seconds: float, over: threading.Event) -> None:
    """Interrupt what runs after so many seconds, and again until it is over: DuckDB forgets an
    interrupt that comes before it executes."""
    while not over.wait(seconds):
        cursor.interrupt()
        seconds = LEAST_SECONDS


@functools.cache
def _connection() -> Any:
    """Dividing by zero gives NULL, as in other databases."""
    settings = {"ieee_floating_point_ops": "false", "error_on_division_by_zero": "false"}
    settings |= {**LOCKED, "lock_configuration": "true"}
    return load_duckdb().connect(":memory:", config=settings)

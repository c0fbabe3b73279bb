"""A column of a generation as FAISS scans it: the candidates of queries, by their codes alone.

Codes of moderate size are read into memory and merged (resident.py). Beyond RESIDENT_BYTES each
segment's lists stay in their mapped file and are scanned one after the other, all adding to one
heap a query. An exact column is always mapped. Of segments in a store the lists that a query scans
are requested before, and so are the vectors of its candidates.
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from chiasm.index.faiss_runtime import load_faiss
from chiasm.index.plan import Plan
from chiasm.index.query.code_scan import CodeScan, PassingRows, best_of, scan_lists
from chiasm.index.query.resident import Resident, merge, narrowed
from chiasm.index.segments import Segment, Trained, Vectors, fetch

RESIDENT_BYTES = 2 << 30  # of codes and row numbers of one column: some 36 million rows of 48 bytes
MAX_ROWS_AHEAD = 128  # candidates whose rows are requested with their vectors
ROWS_AT_ONCE = 1 << 20  # floats of rows that are scored for all queries at once: 4 MiB
# Where several indexes are scanned, a candidate found before has its index's number + 1 above so
# many bits of its row.
ROW_BITS = 40
_ROW = (1 << ROW_BITS) - 1
PREPARED = 8  # filters whose subsets or selectors are kept, for the next batch with their bitmaps

Allowed = Sequence[np.ndarray | None]  # for each segment (rows,) bool, None where all rows are


@dataclass(frozen=True)
class Part:
    """Rows that are scanned together: by FAISS, or, where `rows` (n,) int64 says which rows of a
    segment may be found, by their vectors alone. first: the position of its row 0. selector: of the
    rows that FAISS may find, None for all; bits: what it points to. places: lists have no row
    numbers, and the place of a row in its list is its number."""

    first: int
    scanner: Any = None
    places: bool = False
    selector: Any = None
    bits: np.ndarray | None = None
    rows: np.ndarray | None = None
    raw: Vectors | None = None


@dataclass
class Prepared:
    """What searches with the same bitmaps share. masks: of each segment, the rows that may be found
    and are not deleted; passing: how many these are."""

    allowed: Allowed  # held, so that the bitmaps' identities stay theirs
    masks: list[np.ndarray | None]
    passing: int
    scan: Scan | None = None
    exact: Scan | None = None


@dataclass
class ColumnIndex:
    """One column of a generation: its segments, its plan and what its segments share. starts: the
    position of each segment's first row, then the end, int64. known: the codes that an earlier
    generation with the same `trained` has in memory. any_of_equal: of rows that score the same
    any may be found, where all do not fit, instead of those of the lowest positions. Safe to
    share."""

    segments: Sequence[Segment]
    column: str
    plan: Plan
    trained: Trained | None
    known: Sequence[Resident] = ()
    any_of_equal: bool = False
    starts: np.ndarray = field(init=False)
    _scan: Scan | None = None
    merged: list[Resident] | None = None  # the codes in memory, once they are read
    _whole: bool = False  # no part of a file is left to fetch
    _opening: threading.Lock = field(default_factory=threading.Lock)
    _prepared: OrderedDict[tuple[int, ...], Prepared] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        self.starts = np.cumsum([0, *map(len, self.segments)], dtype=np.int64)

    def open(self) -> None:
        """Map or read what a search needs, so that the first one does not wait for it."""
        self.scan(None)

    def scan(self, allowed: Allowed | None) -> Scan:
        """What a search scans. allowed: the rows that may be found, None for all."""
        if allowed is not None:
            prepared = self._prepare_once(allowed)
            if prepared.scan is None:
                prepared.scan = self._prepare(prepared.masks)
            return self._mine(prepared.scan)
        if self._scan is None:
            here = self.residents() is not None  # without what is deleted
            numbers = range(len(self.segments))
            self._scan = self._prepare([None if here else self.rows_of(n, None) for n in numbers])
        return self._mine(self._scan)

    def exact_scan(self, allowed: Allowed) -> Scan:
        """Scores the vectors of all rows that may be found."""
        prepared = self._prepare_once(allowed)
        if prepared.exact is None:
            masks = prepared.masks
            if self.trained is not None:  # in whose lists no row without a vector is
                both = zip(self.segments, masks, strict=True)
                masks = [_and(mask, segment.has(self.column)) for segment, mask in both]
            prepared.exact = replace(self._prepare_exact(masks), exact=True)
        return self._mine(prepared.exact)

    def _mine(self, scan: Scan) -> Scan:
        """A scan that an index with another plan has prepared, by the plan of this one."""
        return scan if scan.index is self else replace(scan, index=self)

    def passing(self, allowed: Allowed) -> int:
        """How many rows may be found."""
        return self._prepare_once(allowed).passing

    def _prepare_once(self, allowed: Allowed) -> Prepared:
        """Kept where the bitmaps cannot change."""
        key = tuple(map(id, allowed))
        with self._opening:
            if key in self._prepared:
                self._prepared.move_to_end(key)
                return self._prepared[key]
        masks = [self.rows_of(number, mask) for number, mask in enumerate(allowed)]
        counts = [
            len(segment) if mask is None else int(np.count_nonzero(mask))
            for segment, mask in zip(self.segments, masks, strict=True)
        ]
        prepared = Prepared(list(allowed), masks, sum(counts))
        if not any(mask is not None and mask.flags.writeable for mask in allowed):
            with self._opening:
                self._prepared[key] = prepared
                while len(self._prepared) > PREPARED:
                    self._prepared.popitem(last=False)
        return prepared

    def rows_of(self, number: int, allowed: np.ndarray | None) -> np.ndarray | None:
        """The rows of a segment that may be found, (rows,) bool; None for all in its lists."""
        segment = self.segments[number]
        masks = [allowed, None if (gone := segment.deleted()) is None else ~gone]
        if self.trained is None:  # its one list has all rows, those without a vector too
            masks.append(segment.has(self.column))
        masks = [mask for mask in masks if mask is not None]
        return np.logical_and.reduce(masks) if masks else None

    def fetch_lists(self, lists: np.ndarray) -> None:
        """Request lists (Q, nprobe) of every segment that are not here yet."""
        trained = self.trained
        if trained is not None and self.merged is None and not self._is_whole():
            numbers = lists[lists >= 0]
            wanted = [one.wanted_lists(self.column, trained, numbers) for one in self.segments]
            fetch([part for parts in wanted for part in parts])

    def fetch_candidates(self, positions: np.ndarray) -> None:
        """Request the vectors of rows that are not here yet, at rising positions, -1 for none.

        Of few, their rows of the catalog come with them: whoever asks a single query reads those of
        the best, and waits less for a megabyte than for another round."""
        if self._is_whole():
            return
        ends = positions.searchsorted(self.starts)
        with_rows = ends[-1] - ends[0] <= MAX_ROWS_AHEAD
        wanted = []
        for number, segment in enumerate(self.segments):
            rows = positions[ends[number] : ends[number + 1]] - self.starts[number]
            if len(rows):
                wanted += segment.wanted_vectors(self.column, rows)
                wanted += segment.wanted_rows(rows) if with_rows else []
        fetch(wanted)

    def _is_whole(self) -> bool:
        """Whether every file that a search uses is here and verified."""
        if not self._whole:
            lists = None if self.merged is not None else self.trained
            self._whole = all(one.is_whole(self.column, lists) for one in self.segments)
        return self._whole

    def residents(self) -> list[Resident] | None:
        """The codes in memory; None where they are not read there."""
        with self._opening:
            if self.merged is None and self.trained is not None and self.resident:
                parts = self.segments, self.column, self.trained, self.starts
                self.merged, self.known = merge(*parts, self.known), ()
            return self.merged

    def _prepare(self, masks: list[np.ndarray | None]) -> Scan:
        if self.trained is None:
            return self._prepare_exact(masks)
        if (merged := self.residents()) is not None:
            found = narrowed(merged, self.plan, masks, self.starts)
            memory = found.scans if found.available else []
            return Scan(self, [], found.available, found.passing, memory=memory)
        parts, available = [], 0
        for segment, mask, first in zip(self.segments, masks, self.starts.tolist(), strict=False):
            scanner = segment.lists(self.column, self.trained)
            part, found = Part(first, scanner), segment.record.vectors[self.column]
            if mask is not None:
                part, selected = _selected(part.first, scanner, mask)
                found = min(found, selected)
            parts += [part] if found else []
            available += found
        return Scan(self, parts, available)

    def _prepare_exact(self, masks: Sequence[np.ndarray | None]) -> Scan:
        """FAISS scans whole segments of float16; it selects by row numbers, of which an exact
        column has none."""
        parts: list[Part] = []
        available = 0
        for segment, mask, first in zip(self.segments, masks, self.starts.tolist(), strict=False):
            scanner = segment.exact(self.column) if mask is None else None
            if scanner is not None:
                parts.append(Part(first, scanner, places=True))
                available += len(segment)
                continue
            rows = np.arange(len(segment)) if mask is None else np.flatnonzero(mask)
            if len(rows):
                parts.append(Part(first, rows=rows, raw=segment.raw(self.column)))
                available += len(rows)
        # FAISS first: it adds to heaps, in whose order the other scan leaves nothing.
        parts.sort(key=lambda part: part.rows is not None)
        return Scan(self, parts, available)

    @property
    def in_parts(self) -> bool:
        """Whether codes are in memory in parts, as a refresh leaves them. A fresh open has them as
        one, packed anew, and may find other candidates among near ones."""
        return bool(self.known) or len(self.merged or ()) > 1

    @property
    def resident(self) -> bool:
        """Whether the codes are read into memory, rather than mapped or requested."""
        if self.trained is None or any(segment.in_store for segment in self.segments):
            return False
        name = f"{self.column}.lists"
        return sum(one.record.files[name].size for one in self.segments) <= RESIDENT_BYTES


def _and(some: np.ndarray | None, others: np.ndarray | None) -> np.ndarray | None:
    return others if some is None else some if others is None else some & others


def _selected(first: int, scanner: Any, mask: np.ndarray) -> tuple[Part, int]:
    """The rows of a FAISS index that a mask lets pass, and how many these are at most."""
    bits = np.packbits(mask, bitorder="little")
    faiss = load_faiss()
    selector = faiss.IDSelectorBitmap(len(mask), faiss.swig_ptr(bits))
    return Part(first, scanner, selector=selector, bits=bits), int(np.count_nonzero(mask))


@dataclass(frozen=True)
class Scan:
    """The parts of a column that hold rows that may be found; `available` is how many at most.
    memory: of codes in memory. passing: those of each list, None where that is not known. exact:
    the vectors are scored, not codes."""

    index: ColumnIndex
    parts: list[Part]
    available: int
    passing: PassingRows | None = None
    exact: bool = False
    memory: Sequence[CodeScan] = ()

    @property
    def lists(self) -> int:
        return 0 if self.exact else self.index.plan.lists

    def candidates(self, xq: np.ndarray, wanted: int, nprobe: int) -> tuple[np.ndarray, np.ndarray]:
        """The best `wanted` rows of each query by their codes: their scores (Q, wanted) float32 and
        their positions (Q, wanted) int64, -1 where there are no more; in no order."""
        trained = self.index.trained
        if trained is None or self.exact:
            coded, lists = xq, np.zeros((len(xq), 1), np.int64)
        else:
            coded = trained.queries(xq)
            lists = trained.rank(xq, coded, nprobe, ordered=not self.memory)
        return self.in_lists(xq, coded, lists, wanted)

    def plain(self) -> Scan:
        """The same, without a shortlist by fewer bits."""
        return replace(self, memory=[one.plain() for one in self.memory])

    def in_lists(
        self, xq: np.ndarray, coded: np.ndarray, lists: np.ndarray, wanted: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The same of these lists (Q, n) int64, -1 for none. coded (Q, d): queries as codes are."""
        if not self.exact:
            self.index.fetch_lists(lists)
        if self.memory:
            found = (scan.candidates(coded, lists, wanted) for scan in self.memory)
            return functools.reduce(best_of, found)
        scores = np.full((len(xq), wanted), -np.inf, dtype=np.float32)
        rows = np.full((len(xq), wanted), -1, dtype=np.int64)
        for number, part in enumerate(self.parts):
            if part.rows is None:
                scan_lists(part.scanner, coded, lists, scores, rows, part.selector, part.places)
            else:
                _scan_rows(part, xq, scores, rows)
            if len(self.parts) > 1:
                rows[(rows >= 0) & (rows <= _ROW)] += (number + 1) << ROW_BITS
        if len(self.parts) > 1:
            firsts = np.array([0, *(part.first for part in self.parts)])
            rows = np.where(rows < 0, -1, firsts[rows >> ROW_BITS] + (rows & _ROW))
        elif self.parts and self.parts[0].first:
            rows[rows >= 0] += self.parts[0].first
        return scores, rows


def _scan_rows(part: Part, xq: np.ndarray, scores: np.ndarray, rows: np.ndarray) -> None:
    """Replace the least of each query's candidates by better ones among the rows of a part."""
    assert part.raw is not None and part.rows is not None
    wanted = scores.shape[1]
    at_once = max(1, ROWS_AT_ONCE // part.raw.dim)
    for start in range(0, len(part.rows), at_once):
        block = part.rows[start : start + at_once]
        near = np.concatenate([scores, xq @ part.raw.take(block).T], axis=1)
        found = np.concatenate([rows, np.broadcast_to(block, (len(xq), len(block)))], axis=1)
        best = np.argpartition(-near, wanted - 1, axis=1)[:, :wanted]
        scores[:] = np.take_along_axis(near, best, 1)
        rows[:] = np.take_along_axis(found, best, 1)

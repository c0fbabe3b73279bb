"""Vectors -> hits: every segment's codes scanned, the best candidates scored exactly.

    rank     the lists of each query, once for all segments
    scan     the codes in the best lists, by FAISS: the best candidates over all segments
    score    the candidates again, from the stored vectors, in float32

A score depends on the query and the row alone, never on the kind of index, the segment or the
batch, and equal scores are ordered by position: where the scan cut its candidates among equal ones,
more are requested for. Where the lists that were scanned hold fewer than k rows, more lists are.
Search parameters travel with the call; the shared index is never changed.

The segments add to one heap a query, so that several cost little more than one. Memory is bounded
by the candidates of the queries that are searched together, some 16 bytes each, and at the least by
those of one query.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from chiasm.index.faiss_runtime import load_faiss
from chiasm.index.plan import Plan
from chiasm.index.segments import Segment, Trained

# Candidates beyond k: so many equal scores around rank k cost no second scan.
EXTRA_CANDIDATES = 8
MAX_CANDIDATES = 1 << 20  # of all queries that are searched together
# Floats of candidates that are scored at once: they fit a processor's cache.
SCORED_AT_ONCE = 1 << 16
ROWS_AT_ONCE = 1 << 20  # floats of rows that are scored for all queries at once: 4 MiB
# Two sums of the same products in another order differ by less, for unit vectors in float32.
SAME_SCORE = 1e-6
# A candidate is its segment's number + 1, above so many bits of its row.
ROW_BITS = 40
_ROW = (1 << ROW_BITS) - 1

Allowed = Sequence[np.ndarray | None]  # for each segment (rows,) bool, None where all rows are


@dataclass(frozen=True)
class ColumnIndex:
    """One column of a generation: its segments, its plan and what its segments share."""

    segments: Sequence[Segment]
    column: str
    plan: Plan
    trained: Trained | None
    starts: np.ndarray = field(init=False)  # the position of each segment's first row, int64

    def __post_init__(self) -> None:
        rows = [len(segment) for segment in self.segments]
        object.__setattr__(self, "starts", np.cumsum([0, *rows], dtype=np.int64))

    def scanner(self, segment: Segment) -> Any:
        if self.trained is None:
            return segment.exact(self.column)
        return segment.lists(self.column, self.trained)

    def rows_of(self, segment: Segment, allowed: np.ndarray | None) -> np.ndarray | None:
        """The rows of a segment that may be found, (rows,) bool, None for all in its index."""
        masks = [allowed, None if (gone := segment.deleted()) is None else ~gone]
        if self.trained is None:  # its one list has all rows, those without a vector too
            masks.append(segment.has(self.column))
        masks = [mask for mask in masks if mask is not None]
        return np.logical_and.reduce(masks) if masks else None


def search(
    index: ColumnIndex, xq: np.ndarray, k: int, nprobe: int, allowed: Allowed | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k best rows of each query: scores (Q, k) float32, best first, and positions (Q, k) int64.

    xq is (Q, D) float32. nprobe: lists to scan, 0 for an exact column; more are scanned for a query
    that finds fewer than k rows. allowed: the rows that may be found. A position counts rows
    through the segments in order; where there are fewer than k rows the rest is -1 with score -inf.
    """
    xq = np.ascontiguousarray(xq, dtype=np.float32)
    scores = np.full((len(xq), k), -np.inf, dtype=np.float32)
    positions = np.full((len(xq), k), -1, dtype=np.int64)
    scan = Scan.prepare(index, allowed)
    wanted = k * (index.plan.oversample if nprobe else 1) + EXTRA_CANDIDATES
    step = max(1, MAX_CANDIDATES // wanted)
    for start in range(0, len(xq), step):
        waiting, probed = np.arange(start, min(start + step, len(xq))), nprobe
        while len(waiting):
            found = _search_block(scan, xq[waiting], k, wanted, probed)
            scores[waiting], positions[waiting] = found
            if probed >= scan.lists:
                break
            short = (found[1][:, : min(k, scan.available)] < 0).any(axis=1)
            waiting, probed = waiting[short], min(2 * probed, scan.lists)
    return scores, positions


@dataclass(frozen=True)
class Part:
    """A segment as one search scans it: by FAISS, or, where `rows` (n,) int64 says which rows may
    be found, by their vectors alone. selector: of the rows that FAISS may find, None for all;
    bits: what it points to."""

    number: int
    segment: Segment
    scanner: Any = None
    selector: Any = None
    bits: np.ndarray | None = None
    rows: np.ndarray | None = None


@dataclass(frozen=True)
class Scan:
    """The parts of a column that hold rows that may be found; `available` is how many."""

    index: ColumnIndex
    parts: list[Part]
    available: int

    @classmethod
    def prepare(cls, index: ColumnIndex, allowed: Allowed | None) -> Scan:
        faiss = load_faiss()
        parts: list[Part] = []
        available = 0
        for number, segment in enumerate(index.segments):
            scanner = index.scanner(segment)
            may_be_found = index.rows_of(segment, None if allowed is None else allowed[number])
            if may_be_found is None:
                parts.append(Part(number, segment, scanner))
                available += scanner.ntotal
            elif count := int(np.count_nonzero(may_be_found)):
                available += count
                if index.trained is None:  # FAISS selects by row numbers, of which there are none
                    rows = np.flatnonzero(may_be_found)
                    parts.append(Part(number, segment, rows=rows))
                    continue
                bits = np.packbits(may_be_found, bitorder="little")
                selector = faiss.IDSelectorBitmap(len(may_be_found), faiss.swig_ptr(bits))
                parts.append(Part(number, segment, scanner, selector, bits))
        return cls(index, parts, available)

    @property
    def lists(self) -> int:
        return self.index.plan.lists

    def candidates(self, xq: np.ndarray, wanted: int, nprobe: int) -> tuple[np.ndarray, np.ndarray]:
        """The best `wanted` rows of each query by their codes: their scores (Q, wanted) float32 and
        the rows, packed, (Q, wanted) int64, -1 where there are no more; in no order."""
        trained = self.index.trained
        scores = np.full((len(xq), wanted), -np.inf, dtype=np.float32)
        packed = np.full((len(xq), wanted), -1, dtype=np.int64)
        if trained is None:
            coded, lists = xq, np.zeros((len(xq), 1), np.int64)
        else:
            coded = np.ascontiguousarray(trained.queries(xq))
            lists = np.ascontiguousarray(trained.rank(xq, coded, nprobe))
        for part in self.parts:
            if part.rows is None:
                _scan_codes(part, coded, lists, trained is None, scores, packed)
                packed[(packed >= 0) & (packed <= _ROW)] += (part.number + 1) << ROW_BITS
            else:
                raw = part.segment.raw(self.index.column)
                _scan_rows(raw, part.rows, (part.number + 1) << ROW_BITS, xq, scores, packed)
        return scores, packed


def _scan_codes(
    part: Part,
    coded: np.ndarray,
    lists: np.ndarray,
    places: bool,
    scores: np.ndarray,
    rows: np.ndarray,
) -> None:
    """Add what FAISS finds in these lists to the heaps of each query. places: return the place
    of a row in its list, where lists have no row numbers."""
    faiss = load_faiss()
    chosen = {} if part.selector is None else {"sel": part.selector}
    parameters = faiss.SearchParametersIVF(nprobe=lists.shape[1], **chosen)
    unused = np.zeros(lists.shape, np.float32)  # the lists' scores: codes are of no residuals
    part.scanner.search_preassigned_c(
        len(coded),
        faiss.swig_ptr(coded),
        scores.shape[1],
        faiss.swig_ptr(lists),
        faiss.swig_ptr(unused),
        faiss.swig_ptr(scores),
        faiss.swig_ptr(rows),
        places,
        parameters,
        None,
    )


def _scan_rows(
    raw: np.ndarray,
    rows: np.ndarray,
    pack: int,
    xq: np.ndarray,
    scores: np.ndarray,
    packed: np.ndarray,
) -> None:
    """Replace the least of each query's candidates by better ones among `rows` of the vectors `raw`
    (N, D) float16. pack: what makes a packed row of a row's number."""
    wanted = scores.shape[1]
    at_once = max(1, ROWS_AT_ONCE // raw.shape[1])
    for start in range(0, len(rows), at_once):
        block = rows[start : start + at_once]
        near = np.concatenate([scores, xq @ as_float32(raw[block]).T], axis=1)
        found = np.concatenate([packed, np.broadcast_to(block + pack, (len(xq), len(block)))], 1)
        best = np.argpartition(-near, wanted - 1, axis=1)[:, :wanted]
        scores[:] = np.take_along_axis(near, best, 1)
        packed[:] = np.take_along_axis(found, best, 1)


def _search_block(
    scan: Scan, xq: np.ndarray, k: int, wanted: int, nprobe: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k best rows of each query in so many lists: scores (Q, k), positions (Q, k)."""
    wanted = min(wanted, max(1, scan.available))
    near, packed = scan.candidates(xq, wanted, nprobe)
    scores, positions = best_k(*score(scan.index, xq, packed), k)
    cut = _is_cut(near, k, scan.available)
    for query in np.flatnonzero(cut):  # alone: so many candidates take memory
        requested = wanted
        while True:
            requested = min(4 * requested, scan.available)
            near, packed = scan.candidates(xq[query, None], requested, nprobe)
            if not _is_cut(near, k, scan.available).any():
                break
        found = best_k(*score(scan.index, xq[query, None], packed), k)
        scores[query], positions[query] = found[0][0], found[1][0]
    return scores, positions


def _is_cut(near: np.ndarray, k: int, available: int) -> np.ndarray:
    """Which queries may have lost one of the k best by a cut among equal scores: FAISS keeps any of
    those, and the ones of the lowest positions are wanted. (Q,) bool."""
    wanted = near.shape[1]
    if wanted >= available or k >= wanted:
        return np.zeros(len(near), dtype=bool)
    last = near.min(axis=1)
    kth = -np.partition(-near, k - 1, axis=1)[:, k - 1]
    return np.isfinite(last) & (last >= kth - SAME_SCORE)


def score(index: ColumnIndex, xq: np.ndarray, packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The inner products of (Q, D) queries with their candidates (Q, n), in float32, and their
    positions, both (Q, n); -inf and -1 where there is none."""
    flat = packed.ravel()
    order = np.argsort(flat)  # segment by segment, and there in the order of the file
    first = int(np.searchsorted(flat[order], 0))
    ordered = order[first:]
    numbers = (flat[ordered] >> ROW_BITS) - 1
    rows = flat[ordered] & _ROW
    scores = np.full(flat.shape, -np.inf, dtype=np.float32)
    positions = np.full(flat.shape, -1, dtype=np.int64)
    positions[ordered] = rows + index.starts[numbers]
    ends = np.searchsorted(numbers, np.arange(len(index.segments)), side="right")
    at_once = max(1, SCORED_AT_ONCE // xq.shape[1])
    start = 0
    for segment, end in zip(index.segments, ends.tolist(), strict=True):
        raw = segment.raw(index.column) if end > start else None
        for left in range(start, end, at_once):
            assert raw is not None
            block = slice(left, min(end, left + at_once))
            vectors = as_float32(raw[rows[block]])
            queries = xq[ordered[block] // packed.shape[1]]
            scores[ordered[block]] = np.einsum("nd,nd->n", vectors, queries)
        start = end
    return scores.reshape(packed.shape), positions.reshape(packed.shape)


def as_float32(halves: np.ndarray) -> np.ndarray:
    """Finite float16 as float32, the values unchanged: three times as fast as numpy's own
    conversion.

    The bits of exponent and mantissa move to their places in a float32, whose exponent counts from
    112 higher.
    """
    bits = np.ascontiguousarray(halves).view(np.int16).astype(np.int32)
    bits <<= 13
    bits &= np.int32(-0x70002000)  # 0x8FFFE000: the sign, 5 bits of exponent, 10 of mantissa
    floats = bits.view(np.float32)
    floats *= np.float32(2.0**112)
    return floats


def best_k(scores: np.ndarray, positions: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The first k of (Q, n) candidates by falling score, then rising position; padded to k."""
    order = np.lexsort((positions, -scores), axis=-1)[:, :k]
    scores = np.take_along_axis(scores, order, 1)
    positions = np.take_along_axis(positions, order, 1)
    if (missing := k - order.shape[1]) > 0:
        scores = np.pad(scores, ((0, 0), (0, missing)), constant_values=-np.inf)
        positions = np.pad(positions, ((0, 0), (0, missing)), constant_values=-1)
    return scores, positions

"""The 8-bit codes of a column in memory, scanned in two steps.

    4 bits    of each dimension, all rows of the lists: FAISS scores 32 rows at once from tables in
              registers (fast scan: Andre et al., 2015, "Cache locality is not enough")
    8 bits    the SHORTLIST best of these for each candidate that is wanted

The 4-bit codes are made of the 8-bit ones when a column is opened, by levels that are fitted to the
codes of each dimension (Lloyd, 1982, "Least squares quantization in PCM"), so no file holds them.
Of 300,000 vectors of 48 dimensions a scan by 8 bits alone answers, in batches, 1/1.45 as many
queries a second at recall@10 of 0.95, and 1/1.8 at 0.99. One query at a time it answers 1.25 and
1.05 times as many: the second step costs as much in Python as the first one spares
(`python -m benchmarks.fast_scan`).

What is found does not depend on the batch or the threads: the scores of 4 bits are integers, and of
those that are equal at the end of a shortlist none is kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from chiasm.index.faiss_runtime import load_faiss
from chiasm.index.query.code_scan import CodeScan, scan_lists
from chiasm.index.segments import ListCodes, Trained, best_columns, columns_of

# Rows by 4 bits for a candidate: 2 do not reach a recall of 0.99, 8 are as fast as 4 within the
# spread of rounds.
SHORTLIST: int = 4
LEVELS = 16
LEVEL_ROWS = 65_536  # that levels are fitted to: 4,096 a level
LLOYD_STEPS = 30  # from quantiles: within 5 % of the least error for a normal variable
LIST_AFTER_LIST = 11  # with a reservoir of the best: FAISS, IndexIVFFastScan.cpp
BLOCK = 32  # rows that FAISS scores at once, and packs together
PACKED_ROWS = 1 << 17  # packed at once: some tens of MB
GATHERED = 1 << 20  # numbers of shortlists that are made floats at once: 4 MiB
# The order of a block's rows in the low and, 16 further, in the high halves of its bytes (FAISS,
# pq4_fast_scan.cpp).
_ROWS_OF_BYTES = np.array([0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15])


class FastScan(CodeScan):
    """Scans 8-bit codes in two steps."""

    _levels: np.ndarray | None = None
    _plain: CodeScan | None = None

    def _open(self) -> None:
        if self._levels is None:
            self._levels = fit_levels(self.codes.codes)
        self._index = _packed_index(self.codes, self._levels, self.trained)
        self._index_of_one = _sharing(self._index, self.codes, self._levels, self.trained)
        self._plain = None

    def _by_number(self, mask: np.ndarray) -> np.ndarray:
        return mask[self.codes.rows]

    def plain(self) -> CodeScan:
        """Of a copy, made with the first call. Where a bitmap selects, there are too many rows to
        have their codes once more."""
        if self._selector is not None:
            return self
        if self._plain is None:
            self._plain = CodeScan(self.codes, self.trained)
        return self._plain

    def candidates(
        self, coded: np.ndarray, lists: np.ndarray, wanted: int
    ) -> tuple[np.ndarray, np.ndarray]:
        if not len(self.codes) or not len(coded):
            nothing = len(coded), wanted
            return np.full(nothing, -np.inf, np.float32), np.full(nothing, -1, np.int64)
        shortlist = max(wanted, min(SHORTLIST * wanted, len(self)))
        step = max(1, GATHERED // (shortlist * coded.shape[1]))
        blocks = [
            self._candidates(
                coded[start : start + step], lists[start : start + step], wanted, shortlist
            )
            for start in range(0, len(coded), step)
        ]
        if len(blocks) == 1:
            return blocks[0]
        scores, rows = zip(*blocks, strict=True)
        return np.concatenate(scores), np.concatenate(rows)

    def _candidates(
        self, coded: np.ndarray, lists: np.ndarray, wanted: int, shortlist: int
    ) -> tuple[np.ndarray, np.ndarray]:
        places, cut = self._shortlist(coded, lists, shortlist)
        scores, rows = self._best(coded, places, wanted)
        short = (rows < 0).any(axis=1)
        if short.any():
            there = np.where(lists < 0, 0, self.counts[lists]).sum(axis=1)
            missing = (places >= 0).sum(axis=1) < np.minimum(there, wanted)
            for query in np.flatnonzero(short & missing):
                alone = slice(query, query + 1)
                scores[alone], rows[alone] = (
                    # So many rows are equal by 4 bits.
                    self._candidates(coded[alone], lists[alone], wanted, 4 * shortlist)
                    if cut[query] and shortlist < len(self)
                    # FAISS finds no row whose 4 bits are the least possible ones.
                    else self._best(coded[alone], self._all_places(lists[query]), wanted)
                )
        return scores, rows

    def _shortlist(
        self, coded: np.ndarray, lists: np.ndarray, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The places in `codes` of the best `count` rows of each query by 4 bits, without those
        that score as the last one does: (Q, count) int64, -1 for none. Which queries may have more
        rows: (Q,) bool."""
        scores = np.empty((len(coded), count), np.float32)
        places = np.empty((len(coded), count), np.int64)
        index = self._index if len(coded) > 1 else self._index_of_one
        scan_lists(index, coded, lists, scores, places, self._selector)
        cut = places[:, -1] >= 0  # FAISS sorts by falling score
        places[(scores <= scores[:, -1:]) & cut[:, None]] = -1
        return places, cut

    def _all_places(self, lists: np.ndarray) -> np.ndarray:
        """Of the rows in these lists (n,) that may be found: (1, m) int64."""
        starts = self.codes.starts
        ranges = [np.arange(starts[one], starts[one + 1]) for one in lists if one >= 0]
        places = np.concatenate(ranges)
        return places[None] if self._mask is None else places[None, self._mask[places]]

    def _best(
        self, coded: np.ndarray, places: np.ndarray, wanted: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best `wanted` of each query by 8 bits: scores and positions, both (Q, wanted)."""
        scores = self._score(coded, places)
        best = best_columns(scores, wanted)
        rows, scores = self.codes.rows[columns_of(places, best)], columns_of(scores, best)
        rows[scores == -np.inf] = -1
        if more := wanted - scores.shape[1]:
            scores = np.pad(scores, ((0, 0), (0, more)), constant_values=-np.inf)
            rows = np.pad(rows, ((0, 0), (0, more)), constant_values=-1)
        return scores, rows

    def _score(self, coded: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Inner products of queries (Q, d) with the 8-bit codes at places (Q, n): (Q, n) float32,
        -inf at place -1."""
        ranges = self.trained.ranges
        assert ranges is not None
        low, step = ranges[0], ranges[1] / 255  # a code stands for the middle of its step
        scores = np.empty(places.shape, np.float32)
        at_once = max(1, GATHERED // coded.size)
        for start in range(0, places.shape[1], at_once):
            some = slice(start, start + at_once)
            values = self.codes.codes[places[:, some]].astype(np.float32)
            # A matrix product would sum in an order of its own for each size of batch.
            scores[:, some] = np.einsum("qnd,qd->qn", values, coded * step)
        scores += np.einsum("qd,d->q", coded, low + step / 2)[:, None]
        scores[places < 0] = -np.inf
        return scores


def fit_levels(codes: np.ndarray) -> np.ndarray:
    """The 16 levels of each dimension that 8-bit codes (N, d) are rounded to with the least mean
    squared error: (d, LEVELS) float32, rising, in units of the codes."""
    sample = codes[:: max(1, len(codes) // LEVEL_ROWS)]
    counts = np.stack([np.bincount(column, minlength=256) for column in sample.T])
    values = np.arange(256)
    sums = np.pad(np.cumsum(counts, axis=1), ((0, 0), (1, 0)))
    moments = np.pad(np.cumsum(counts * values, axis=1), ((0, 0), (1, 0)))
    shares = (np.arange(LEVELS) + 0.5) / LEVELS * len(sample)
    levels = np.stack([np.searchsorted(one[1:], shares) for one in sums]).astype(np.float64)
    for _ in range(LLOYD_STEPS):
        ends = np.ceil((levels[:, 1:] + levels[:, :-1]) / 2).astype(np.int64)
        ends = np.pad(ends, ((0, 0), (1, 1)), constant_values=((0, 0), (0, 256)))
        inside = np.diff(np.take_along_axis(sums, ends, 1), axis=1)
        means = np.diff(np.take_along_axis(moments, ends, 1), axis=1) / np.maximum(inside, 1)
        levels = np.where(inside > 0, means, levels)
    return levels.astype(np.float32)


def _empty_index(codes: ListCodes, levels: np.ndarray, trained: Trained) -> Any:
    faiss = load_faiss()
    dims = codes.codes.shape[1]
    quantizer = faiss.IndexFlatIP(dims)
    index = faiss.IndexIVFPQFastScan(
        quantizer, dims, len(codes.counts), dims, 4, faiss.METRIC_INNER_PRODUCT, BLOCK
    )
    index.own_fields = False
    index.referenced_objects = [quantizer]
    index.by_residual = False
    index.is_trained = True
    assert trained.ranges is not None
    low, step = trained.ranges[0], trained.ranges[1] / 255
    values = low[:, None] + (levels + 0.5) * step[:, None]
    faiss.copy_array_to_vector(np.ascontiguousarray(values.ravel(), np.float32), index.pq.centroids)
    return index


def _sharing(packed: Any, codes: ListCodes, levels: np.ndarray, trained: Trained) -> Any:
    """The same index for one query at a time, which scans list after list (FAISS, `implem`): it
    does not sort its lists for other queries to scan them too."""
    index = _empty_index(codes, levels, trained)
    index.implem = LIST_AFTER_LIST
    index.replace_invlists(packed.invlists, False)
    index.referenced_objects.append(packed)
    index.ntotal = packed.ntotal
    return index


def _packed_index(codes: ListCodes, levels: np.ndarray, trained: Trained) -> Any:
    """The FAISS index of the 4-bit codes, whose row numbers are places in `codes`."""
    index = _empty_index(codes, levels, trained)
    lists = len(codes.counts)
    tables = [
        np.abs(np.arange(256)[:, None] - some).argmin(axis=1).astype(np.uint8).tobytes()
        for some in levels
    ]
    first = 0
    while first < lists:
        after = int(np.searchsorted(codes.starts, codes.starts[first] + PACKED_ROWS, "right")) - 1
        after = min(lists, max(first + 1, after))
        _add_lists(index, codes, first, after, tables)
        first = after
    index.ntotal = len(codes)
    return index


def _add_lists(index: Any, codes: ListCodes, first: int, after: int, tables: list[bytes]) -> None:
    """Pack the lists from `first` until `after`, each padded to whole blocks."""
    faiss = load_faiss()
    starts = codes.starts[first : after + 1]
    sizes = np.diff(starts)
    padded = -(-sizes // BLOCK) * BLOCK
    begins = np.cumsum(padded) - padded
    places = np.arange(starts[0], starts[-1])
    targets = places - np.repeat(starts[:-1] - begins, sizes)
    columns = np.ascontiguousarray(codes.codes[starts[0] : starts[-1]].T)
    # FAISS packs pairs of dimensions; without a last one its half byte is 0.
    halves = np.zeros((2 * ((len(columns) + 1) // 2), int(padded.sum())), np.uint8)
    for half, column, table in zip(halves, columns, tables, strict=False):
        half[targets] = np.frombuffer(column.tobytes().translate(table), np.uint8)
    blocks = halves.reshape(len(halves), -1, BLOCK).transpose(1, 0, 2)
    packed = blocks[:, :, _ROWS_OF_BYTES] | blocks[:, :, _ROWS_OF_BYTES + 16] << 4
    packed = np.ascontiguousarray(packed)
    for number, size, begin in zip(
        range(first, after), sizes.tolist(), begins.tolist(), strict=True
    ):
        if size:
            numbers = np.arange(codes.starts[number], codes.starts[number + 1])
            block = packed[begin // BLOCK :]
            index.invlists.add_entries(number, size, faiss.swig_ptr(numbers), faiss.swig_ptr(block))

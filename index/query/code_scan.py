"""The codes of a column in memory, and scans of all its rows or of those that a filter lets pass.

Two ways to scan some of the rows: a copy of their codes, or a bitmap that FAISS asks for the rows
that it scores. Scanning a copy is faster, and making it takes as long as some hundred queries, so
it pays where filters come again or queries come in batches.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from chiasm.index.faiss_runtime import load_faiss
from chiasm.index.segments import ListCodes, Trained, best_columns, columns_of


@dataclass(frozen=True)
class PassingRows:
    """The rows of each list that pass: how many, counts (L,) int64, and their mean in the space of
    the codes, means (L, d) float32, 0 where there are none; None where it is not known."""

    counts: np.ndarray
    means: np.ndarray | None = None


class CodeScan:
    """Scans the codes of a column as they are. `subset` and `selecting` give scans of some rows."""

    def __init__(self, codes: ListCodes, trained: Trained) -> None:
        self.codes, self.trained = codes, trained
        self.counts = codes.counts  # (L,): the rows of each list that may be found
        self._mask: np.ndarray | None = None  # of these, by row number of FAISS; None for all
        self._selector: Any = None
        self._open()

    def _open(self) -> None:
        self._index = self.codes.index(self.trained)

    def __len__(self) -> int:
        return len(self.codes)

    def subset(self, mask: np.ndarray) -> Self:
        """A copy of the rows that pass. mask: by position, (rows,) bool."""
        some = copy(self)
        some.codes = self.codes.subset(mask)
        some.counts = some.codes.counts
        some._open()
        return some

    def selecting(self, mask: np.ndarray) -> Self:
        """The same rows, of which those that pass may be found. mask: by position, (rows,) bool."""
        faiss = load_faiss()
        some = copy(self)
        some.counts = self.codes.passing(mask)
        some._mask = self._by_number(mask)
        bits = np.packbits(some._mask, bitorder="little")
        some._selector = faiss.IDSelectorBitmap(len(some._mask), faiss.swig_ptr(bits))
        some._selector.referenced_objects = [bits]
        return some

    def means(self) -> np.ndarray | None:
        """Of the rows of each list, as of `PassingRows`; None for codes other than of 8 bits."""
        if self.trained.plan.codes != "SQ8":
            return None
        assert self.trained.ranges is not None
        low, width = self.trained.ranges
        counts, means = self.codes.counts, np.zeros((len(self.counts), len(low)), np.float32)
        some = np.flatnonzero(counts)
        if len(some):
            starts = self.codes.starts[some]
            sums = np.add.reduceat(self.codes.codes, starts, axis=0, dtype=np.float32)
            means[some] = low + width * ((sums / counts[some, None] + 0.5) / 255)
        return means

    def plain(self) -> CodeScan:
        """Of the same rows, by the full codes alone."""
        return self

    def _by_number(self, mask: np.ndarray) -> np.ndarray:
        """The mask by the row numbers of the FAISS index."""
        return mask

    def candidates(
        self, coded: np.ndarray, lists: np.ndarray, wanted: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best `wanted` rows of each query in its lists, by their codes: scores (Q, wanted)
        float32 and positions (Q, wanted) int64, -inf and -1 where there are fewer; in no order.

        coded (Q, d) float32: queries in the space of the codes. lists (Q, n) int64, -1 for none.
        """
        scores = np.full((len(coded), wanted), -np.inf, np.float32)
        rows = np.full((len(coded), wanted), -1, np.int64)
        scan_lists(self._index, coded, lists, scores, rows, self._selector)
        return scores, rows


Candidates = tuple[np.ndarray, np.ndarray]  # scores (Q, wanted) float32, rows (Q, wanted) int64


def best_of(some: Candidates, others: Candidates) -> Candidates:
    """As many of the best of two sets of candidates as either has, in no order."""
    scores, rows = (np.concatenate(pair, axis=1) for pair in zip(some, others, strict=True))
    best = best_columns(scores, some[0].shape[1])
    return columns_of(scores, best), columns_of(rows, best)


def scan_lists(
    index: Any,
    coded: np.ndarray,
    lists: np.ndarray,
    scores: np.ndarray,
    rows: np.ndarray,
    selector: Any = None,
    places: bool = False,
) -> None:
    """Add what FAISS finds in these lists to the heaps of each query: scores, rows, both (Q, n).

    selector: of rows. places: lists have no row numbers, and the place of a row in its list is its
    number."""
    faiss = load_faiss()
    selection = {} if selector is None else {"sel": selector}
    parameters = faiss.SearchParametersIVF(nprobe=lists.shape[1], **selection)
    unused = np.zeros(lists.shape, np.float32)  # the lists' scores: codes are of no residuals
    index.search_preassigned_c(
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

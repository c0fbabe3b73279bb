"""Exact hits of many queries, each without rows of its own: those that name some words.

Every row is scored once for each query: queries x rows x width multiplications. Memory: a block of
scores; the rows that name a word are slices of the mapped keyword indexes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from chiasm.index.queries import CALIBRATED_HITS

BLOCK = 16_384  # rows scored at once: 64 MiB of scores of 1,000 queries
MANY = 512  # scores that are quicker to cut than to sort

Hits = tuple[np.ndarray, np.ndarray]  # scores and positions, (Q, k) each


@dataclass(frozen=True)
class Postings:
    """The rows that name a word: runs of rising positions, each beginning at or after its
    `firsts`."""

    firsts: Sequence[int]
    rows: Sequence[np.ndarray]  # within each run: added to its first

    def within(self, start: int, stop: int) -> np.ndarray:
        """Those from `start` on and below `stop`."""
        parts: list[np.ndarray] = []
        for run in range(max(0, bisect_right(self.firsts, start) - 1), len(self.firsts)):
            first, rows = self.firsts[run], self.rows[run]
            if first >= stop:
                break
            low, high = np.searchsorted(rows, (start - first, stop - first))
            parts.append(rows[low:high] + np.int64(first))
        return np.concatenate(parts) if parts else np.empty(0, np.int64)


def exact_hits(
    blocks: Iterable[tuple[np.ndarray, np.ndarray]],
    xq: np.ndarray,
    own: Sequence[int],
    variants: Sequence[Sequence[Sequence[Postings]]],
) -> list[Hits]:
    """The k = CALIBRATED_HITS best rows of each query in several variants: scores (Q, k) float32,
    best first, and positions (Q, k) int64, -inf and -1 where there are fewer.

    blocks: positions (n,), rising, and vectors (n, D) of all rows. own: a position of each query
    that is no hit. variants: of each, by query, the words whose rows are left out, those that name
    all of them; a query without any has no hits.
    """
    k = CALIBRATED_HITS
    best = [
        (np.full((len(xq), k), -np.inf, np.float32), np.full((len(xq), k), -1, np.int64))
        for _ in variants
    ]
    for positions, block in _cut(blocks):
        scores = xq @ block.T
        for (top, places), words in zip(best, variants, strict=True):
            for query, postings in enumerate(words):
                if postings:
                    out = _out(positions, own[query], postings)
                    _merge(top[query], places[query], scores[query], positions, out)
    return best


def _out(positions: np.ndarray, row: int, postings: Sequence[Postings]) -> np.ndarray:
    """Which places of a block are left out: the row's own, and those that all postings have."""
    found = [one.within(int(positions[0]), int(positions[-1]) + 1) for one in postings]
    gone = found[0] if len(found) == 1 else np.intersect1d(*found, assume_unique=True)
    gone = np.append(gone, row)
    places = np.minimum(np.searchsorted(positions, gone), len(positions) - 1)
    return places[positions[places] == gone]


def _merge(
    top: np.ndarray, places: np.ndarray, scores: np.ndarray, positions: np.ndarray, out: np.ndarray
) -> None:
    """Put the best of a block into `top` and `places`, (k,) each, in place."""
    higher = scores > top[-1]
    higher[out] = False
    numbers = np.flatnonzero(higher)
    if len(numbers) > MANY:
        numbers = numbers[np.argpartition(-scores[numbers], len(top))[: len(top)]]
    if len(numbers):
        both = np.concatenate((top, scores[numbers]))
        order = np.argsort(-both, kind="stable")[: len(top)]
        places[:] = np.concatenate((places, positions[numbers]))[order]
        top[:] = both[order]


def _cut(
    blocks: Iterable[tuple[np.ndarray, np.ndarray]],
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for positions, vectors in blocks:
        for start in range(0, len(positions), BLOCK):
            some = slice(start, start + BLOCK)
            yield positions[some], np.asarray(vectors[some], np.float32)

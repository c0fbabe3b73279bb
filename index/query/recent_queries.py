"""Which queries were answered lately: a sample of them, kept for the next audit.

Vitter's reservoir with the skips of Li, 1994, "Reservoir-sampling algorithms of time complexity
O(n(1 + log(N/n)))", algorithm L: all queries since the last audit are equally likely to be kept,
and once the reservoir is full most cost a comparison.
"""

from __future__ import annotations

import math
import random
import threading
from typing import Any, NamedTuple

import numpy as np

# Queries: 2 MB at 512 dimensions, and as many as are answered exactly at once. Until so many are
# kept each is copied, which takes three times as long as to count it.
KEPT = 1024


class Search(NamedTuple):
    """What a query was searched by. kind: text, picture, mixed, vector or filtered. nprobe: lists
    that the caller wanted, None for as many as the column's recall needs. where: its filter."""

    column: str
    kind: str
    k: int
    nprobe: int | None = None
    where: str | None = None


class RecentQueries:
    """The reservoir. Safe to use from any thread. seen: queries since the last `take`."""

    def __init__(self, dim: int, seed: int = 0) -> None:
        self.seen = 0
        self._dim = dim
        self._rng = random.Random(seed)  # numpy takes ten times as long for one number
        self._lock = threading.Lock()
        self._vectors: np.ndarray | None = None  # (KEPT, D), made when it is needed
        self._searches: list[Search] = []
        self._next = 0  # the number of the next query that is kept
        self._weight = 1.0

    def add(self, xq: np.ndarray, *search: Any) -> None:
        """Queries (Q, D) float32 that were answered by the same search, given by its fields; they
        are copied."""
        with self._lock:
            self.seen += len(xq)
            if self.seen > self._next:
                self._keep(self.seen - len(xq), xq, Search(*search))

    def _keep(self, first: int, xq: np.ndarray, search: Search) -> None:
        if self._vectors is None:
            self._vectors = np.empty((KEPT, self._dim), np.float32)
        filled = len(self._searches)
        if filled < KEPT:
            some = xq[: KEPT - filled]
            self._vectors[filled : filled + len(some)] = some
            self._searches.extend([search] * len(some))
            self._next = first + len(some)
            if len(self._searches) == KEPT:
                self._skip()
        while self._next < self.seen:
            place = int(self._rng.random() * KEPT)
            self._vectors[place] = xq[self._next - first]
            self._searches[place] = search
            self._next += 1
            self._skip()

    def _skip(self) -> None:
        """The queries that are not kept before the next one that is."""
        self._weight *= math.exp(math.log(self._uniform()) / KEPT)
        self._next += int(math.log(self._uniform()) / math.log1p(-self._weight))

    def _uniform(self) -> float:
        """Above 0 and below 1."""
        return self._rng.random() or 0.5

    def is_full_of(self, share: float) -> bool:
        """Whether a share of the queries since the last audit is as many as are kept."""
        return share * self.seen >= KEPT

    def take(self, share: float) -> list[tuple[Search, np.ndarray]]:
        """A share of the queries since the last `take`, drawn evenly, one at the least and KEPT at
        the most, those of the same search together (n, D). The others are let go."""
        with self._lock:
            kept = len(self._searches)
            count = min(kept, math.ceil(share * self.seen))
            places = self._rng.sample(range(kept), count)
            vectors = np.empty((0, self._dim)) if self._vectors is None else self._vectors[places]
            searches = [self._searches[place] for place in places]
            self.seen, self._searches, self._next, self._weight = 0, [], 0, 1.0
        groups: dict[Search, list[int]] = {}
        for number, search in enumerate(searches):
            groups.setdefault(search, []).append(number)
        return [(search, vectors[numbers]) for search, numbers in groups.items()]

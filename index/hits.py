"""Hits, and what an answer was made of: plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Hit:
    """A row that was found: its position in the live generation, and the score of each stage that
    scored it by the stage's name, in their order, `search` first. Higher is better. rerank_step:
    the number of the last stage of reranking that scored it, from 0, None for none. folded: the
    positions of near duplicates that are folded under it, best first."""

    position: int
    scores: dict[str, float]
    rerank_step: int | None = None
    folded: tuple[int, ...] = ()

    @property
    def score(self) -> float:
        """The score of the last stage that scored it: of `search` the inner product of unit
        vectors, in [-1, 1]."""
        return self.scores[self.scored_by]

    @property
    def scored_by(self) -> str:
        """The name of the last stage that scored it."""
        return next(reversed(self.scores))

    def scored(self, stage: str, score: float, rerank_step: int | None = None) -> Hit:
        """The hit with the score of one more stage; rerank_step: its number, of one that
        reranks."""
        before = {name: value for name, value in self.scores.items() if name != stage}
        return Hit(self.position, {**before, stage: score}, rerank_step, self.folded)


@dataclass(frozen=True, slots=True)
class Explanation:
    """Which way a column was searched for queries that were searched together, and why.

    index: the column's, such as `projected 1026 x SQ8, 48 dimensions`. way: `exact` (every vector
    that may be found is scored) or `lists` without a filter, with one a way of
    index/query/filter_plan.py. rows: how many could be found without a filter; passing: how many of
    them its filter lets pass, counted, None without one. nprobe: lists that a query scans without a
    filter, 0 where the column is exact. lists: how many of `of_lists` this one scans, at the least;
    with a filter about so many. candidates: of a query, to be scored again.
    """

    column: str
    index: str
    way: str
    rows: int
    passing: int | None
    nprobe: int
    lists: int
    of_lists: int
    candidates: int
    queries: int
    reason: str

    def as_json(self) -> dict[str, Any]:
        """The fields, and `share`, of the rows that pass, null without a filter."""
        share = None if self.passing is None else self.passing / max(1, self.rows)
        return {**asdict(self), "share": share}

    def __str__(self) -> str:
        """One line for a person."""
        return f"column {self.column} ({self.index}): {self.reason}"


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """What an answer was made of. generation: the number of the one that answered. vector: the
    query's, (D,) float32. searches: the way of the search, and of each further one that folding
    needed. candidates: all hits after the last stage, best first; the results are the first of
    them."""

    generation: int
    vector: np.ndarray
    searches: tuple[Explanation, ...]
    candidates: tuple[Hit, ...]

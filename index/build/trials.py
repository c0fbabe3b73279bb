"""A sample of a column's rows, on which plans are tried as if all rows were there.

A trial makes the lists that the whole column would have, as many of them, and puts the sample into
them. Which share of the best rows lies in the first lists of a query does not depend on how many
others lie there; so with a share r of the rows, recall@(r k) of r times the candidates stands for
recall@k over all rows. What a query costs is measured where lists have as many rows as they will:
the sample in r times as many lists, of which as many are scanned as all rows need.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from chiasm.index.build.measure import (
    FILTERED,
    Case,
    measure,
    one_thread,
    random_filter,
    recalls,
)
from chiasm.index.build.memory import release_memory
from chiasm.index.build.project import fit_projection
from chiasm.index.build.report import Measured, SmallVectors
from chiasm.index.build.samples import Queries, QuerySets
from chiasm.index.build.train import Projection, encoded_index, train
from chiasm.index.build.trial_index import SAMPLE, Made, SampleSegment
from chiasm.index.plan import IndexSettings, Plan
from chiasm.index.query import (
    EXTRA_CANDIDATES,
    ColumnIndex,
    Ranked,
    exact_top,
    others_than_own,
    recall_of,
    without_own,
)
from chiasm.index.segments import CACHED_BYTES, FORMS, Trained

QUERIES = 400  # of a kind, that are searched for
ROUTED = 1500  # of a kind, whose best rows are looked for among the lists, which costs little
DESCRIBED = 64  # queries of each kind for what a report says of a trial: one batch
TIMED = 192  # queries: three batches
COMPARED = 3  # times that two plans are timed in turn
# Of the time of a smaller plan: what a larger one has to stay below, which takes longer to build.
CHEAPER = 0.95
SCORED = 16_384  # rows that smaller vectors rank
DEEPEST = 100
ITERATIONS = 4  # of k-means, over
PER_LIST = 16  # rows a list: enough to compare plans
MORE = 2  # iterations that make lists of one space those of another


@dataclass(frozen=True)
class Trial:
    """A plan with the lists that it needs. recall: the least of text and picture queries, at the
    most where the plan does not reach what is wanted. made: to be timed again, None where nobody
    will."""

    plan: Plan
    measured: Measured
    recall: float
    made: Made | None = None


@dataclass
class Trials:
    """rows (n, D), training (m, D) float32: the sample, and rows that lists are trained on, others
    where there are so many: rows lie closer to centroids that they are part of. total: rows of the
    column. settings: what is wanted."""

    rows: np.ndarray
    training: np.ndarray
    sets: QuerySets
    total: int
    settings: IndexSettings
    cases: dict[str, Case] = field(init=False)
    best: dict[str, tuple[np.ndarray, np.ndarray]] = field(init=False)
    projection: Projection = field(init=False)
    tried: list[Trial] = field(default_factory=list)
    _assigned: dict[tuple[str, bool, int, int], tuple[np.ndarray, np.ndarray]] = field(
        default_factory=dict
    )

    def __post_init__(self) -> None:
        self.vectors = self.rows.astype(np.float16)
        # Those of Parquet files have the values of float16.
        form = FORMS["int8" if self.form == "int8" else "float16"]
        self._stored = form.opened(form.stored(self.vectors))
        self.deepest = max(DEEPEST, self.settings.at)
        tune = {kind: queries for kind, queries in self.sets.tune.items() if len(queries)}
        self.cases = {kind: self._case(queries[:QUERIES]) for kind, queries in tune.items()}
        self.best = {kind: self._best_rows(queries) for kind, queries in tune.items()}
        allowed = random_filter([len(self.rows)], seed=0)
        main = self.cases[self.sets.kind].queries[:DESCRIBED]
        self.cases[FILTERED] = self._case(main, allowed)
        self.projection = fit_projection(self.sets.learn, self.training, self.rows.shape[1])

    @property
    def share(self) -> float:
        """Of the column's rows that the sample has."""
        return len(self.rows) / self.total

    @property
    def at(self) -> int:
        """How many best rows of the sample stand for `at` of all rows."""
        return max(1, round(self.settings.at * self.share))

    def candidates(self, plan: Plan) -> int:
        """How many of the sample stand for those that are scored of all rows."""
        wanted = self.settings.at * plan.oversample + EXTRA_CANDIDATES
        return max(self.at, round(wanted * self.share))

    @property
    def form(self) -> Any:
        """In which vectors are stored."""
        return self.settings.vectors

    def _case(self, queries: Queries, allowed: Any = None) -> Case:
        rows = np.arange(len(self.rows)) if allowed is None else np.flatnonzero(allowed[0])
        vectors = self.vectors if allowed is None else self.vectors[rows]
        scores, places = exact_top([(0, vectors)], queries.vectors, self.deepest + 1)
        ranked = Ranked(scores, np.where(places < 0, -1, rows[places]))
        exact = without_own(scores, queries.own)
        return Case(queries, exact, allowed, ranked if self.form == "int8" else None)

    def _best_rows(self, queries: Queries) -> tuple[np.ndarray, np.ndarray]:
        """ROUTED queries, and the `at` best rows of each: (Q, D), (Q, at). Where there are not so
        many of them, those that the projection is learned from are as good."""
        more = ROUTED - len(queries)
        if np.isnan(queries.own).all() and more > 0:
            both = np.concatenate([queries.vectors, self.sets.learn[:more]])
            queries = Queries.of(both)
        scores, rows = exact_top([(0, self.vectors)], queries.vectors, self.at + 1)
        kept = others_than_own(scores, queries.own)
        return queries.vectors, rows[kept].reshape(len(queries), -1)

    def run(self, plan: Plan) -> Trial:
        """Try a plan."""
        began = time.perf_counter()
        made, lists = self.make(plan)
        seconds = time.perf_counter() - began
        with one_thread():
            trial = self._measure(made, lists, seconds)
        self.tried.append(replace(trial, made=None))
        release_memory()
        return trial

    def cheaper(self, one: Trial, other: Trial) -> bool:
        """Whether a trial is cheaper than another, by CHEAPER if it is larger; where one of them
        does not reach the recall, whether it has more."""
        if not (one.measured.reached and other.measured.reached):
            return (one.measured.reached, one.recall) > (other.measured.reached, other.recall)
        assert one.made is not None and other.made is not None
        xq = self.cases[self.sets.kind].queries.vectors[:TIMED]
        with one_thread():  # in turn: other processes disturb both
            spent = [
                [made.seconds_per_query(xq, self.settings.at) for made in (one.made, other.made)]
                for _ in range(COMPARED)
            ]
        limit = CHEAPER if one.measured.bytes > other.measured.bytes else 1.0
        return bool(np.median([first / second for first, second in spent]) < limit)

    def _measure(self, made: Made, lists: np.ndarray, seconds: float) -> Trial:
        """lists (n,): of the sample's rows."""
        plan, settings = made.index.plan, self.settings
        places = {kind: made.places(xq, lists[rows]) for kind, (xq, rows) in self.best.items()}
        loss = 0.0
        nprobe = min(settings.nprobe, plan.lists)
        if not nprobe:
            nprobe = _lists_for(places, settings.recall)
            loss = self._loss(made.index, places, nprobe)
            if settings.recall + loss <= 1:
                nprobe = _lists_for(places, settings.recall + loss)
        recall = min(float((some < nprobe).mean()) for some in places.values()) - loss
        reached = bool(settings.nprobe) or settings.recall + loss <= 1
        xq = self.cases[self.sets.kind].queries.vectors[:TIMED]
        made = made.with_nprobe(nprobe, xq)
        measured = measure(
            made.index,
            {kind: case.first(DESCRIBED) for kind, case in self.cases.items()},
            settings.at,
            timed=made.timed,
            query_seconds=made.seconds_per_query(xq, settings.at),
            size=plan_bytes(plan, self.total, self.rows.shape[1]),
            seconds=seconds,
            reached=reached,
        )
        return Trial(made.index.plan, measured, recall, made)

    def _loss(self, index: ColumnIndex, places: dict[str, np.ndarray], nprobe: int) -> float:
        """What codes and candidates lose of the best rows that lie in the lists that are scanned:
        the greater share of text and picture queries."""
        wanted, loss = self.candidates(index.plan), 0.0
        for kind, ranks in places.items():
            case = self.cases[kind]
            inside = (ranks[: len(case.queries)] < nprobe).mean()
            found = recalls(index, case, self.at, nprobe, wanted=wanted)
            loss = max(loss, float(inside - np.nanmean(found)))
        return loss

    def make(self, plan: Plan) -> tuple[Made, np.ndarray]:
        """The sample, indexed, and the list of each row (n,). Of the fewer lists each has the rows
        of several others."""
        key = _key(plan)
        centroids, lists = self._assigned.get(key, (None, None))
        like = next((one for known, one in self._assigned.items() if known[-1] == plan.lists), None)
        trained = train(
            plan,
            self.training,
            self.sets.learn,
            projection=self.projection,
            centroids=centroids,
            start=None if like is None else (self.rows, like[1]),
            iterations=ITERATIONS if like is None else MORE,
            per_list=PER_LIST,
        )
        coded = np.ascontiguousarray(trained.rows(self.rows), dtype=np.float32)
        if lists is None:
            lists = trained.assign(self.rows, coded)
            self._assigned[key] = trained.centroids, lists
        fewer = max(1, round(plan.lists * self.share))
        merged = np.arange(plan.lists) * fewer // plan.lists
        firsts = np.searchsorted(merged, np.arange(fewer))
        part = replace(
            trained,
            plan=replace(plan, lists=fewer),
            centroids=trained.centroids[firsts],
            list_bias=trained.list_bias[firsts],
        )
        made = Made(
            self._column(trained, coded, lists),
            self._column(part, coded, merged[lists]),
            np.bincount(lists, minlength=plan.lists),
        )
        return made, lists

    def start(self, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
        """Rows and their lists, for the training of a plan that was tried: (n, D), (n,)."""
        return self.rows, self._assigned[_key(plan)][1]

    def _column(self, trained: Trained, coded: np.ndarray, lists: np.ndarray) -> ColumnIndex:
        segment: Any = SampleSegment(self._stored, encoded_index(trained, coded, lists))
        index = ColumnIndex([segment], SAMPLE, trained.plan, trained)
        index.open()
        return index

    def small_vectors(self, dims: int) -> list[SmallVectors]:
        """What is lost by scoring with smaller vectors than float16: those of Parquet, of which
        there is no copy, 8 bits a number, the projection to `dims`, and the first `dims`
        numbers."""
        xq, rows = self.cases[self.sets.kind].queries.vectors[:DESCRIBED], self.rows[:SCORED]
        int8 = FORMS["int8"]
        bytes_ = int8.opened(int8.stored(self.vectors[:SCORED])).take(slice(None))
        onto_rows, onto_queries = (side[:, :dims] for side in self.projection)
        ways = [
            ("float16 of the Parquet files", 0, xq, self.vectors[:SCORED]),
            ("8 bits a number", int8.row_bytes(rows.shape[1]), xq, bytes_),
            (f"the projection to {dims}, float16", 2 * dims, xq @ onto_queries, rows @ onto_rows),
            (f"the first {dims} numbers, float16", 2 * dims, xq[:, :dims], rows[:, :dims].copy()),
        ]
        exact, _ = exact_top([(0, self.vectors[:SCORED])], xq, DEEPEST)
        return [
            SmallVectors(name, size, self._recall_of_ranking(queries, vectors, xq, exact))
            for name, size, queries, vectors in ways
        ]

    def _recall_of_ranking(
        self, queries: np.ndarray, vectors: np.ndarray, xq: np.ndarray, exact: np.ndarray
    ) -> dict[int, float]:
        _, ranked = exact_top([(0, vectors)], queries, DEEPEST)
        near = np.stack(
            [
                self.vectors[rows].astype(np.float32) @ query
                for rows, query in zip(ranked, xq, strict=True)
            ]
        )
        return {
            k: round(float(np.nanmean(recall_of(-np.sort(-near[:, :k], axis=1), exact, k))), 4)
            for k in (1, 10, 100)
        }


def _lists_for(places: dict[str, np.ndarray], share: float) -> int:
    """The least number of lists that have this share of the best rows of every kind of query.
    places: in which list of a query each of its best rows is."""
    needed = [np.sort(some, axis=None) for some in places.values()]
    return 1 + max(int(some[math.ceil(share * len(some)) - 1]) for some in needed)


def _key(plan: Plan) -> tuple[str, bool, int, int]:
    """Of what plans with the same centroids share; the last is the number of lists."""
    dims = plan.dims if plan.space == "projected" else 0
    return plan.space, plan.is_prefix, dims, plan.lists


def plan_bytes(plan: Plan, rows: int, dim: int) -> int:
    """What an open index of a column keeps in memory: codes and row numbers, centroids and
    projections; of an exact one its vectors. The vectors that candidates are scored by are mapped
    besides, and a query reads some tens of them; where they lie in Parquet files alone, what is
    kept of these counts."""
    if plan.exact:
        return FORMS[plan.vectors].row_bytes(dim) * rows
    kept = min(CACHED_BYTES, 2 * dim * rows) if plan.vectors == "none" else 0
    width = plan.dims if plan.space == "projected" else dim
    shared = plan.lists * (4 * width + 4)
    if plan.family == "projected":
        shared += 2 * 4 * dim * plan.dims
    return rows * plan.row_bytes + shared + kept

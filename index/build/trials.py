"""A sample of a column's rows, on which plans are tried as if all rows were there.

A trial makes the lists that the whole column would have, as many of them, and puts the sample into
them. Which share of the best rows lies in the first lists of a query does not depend on how many
others lie there; so with a share r of the rows, recall@(r k) of r times the candidates stands for
recall@k over all rows. What a query costs is measured where lists have as many rows as they will:
the sample in r times as many lists, of which as many are scanned as all rows need.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from chiasm.index.build.measure import (
    BATCH,
    FILTERED,
    Case,
    least_nprobe,
    measure,
    one_thread,
    random_filter,
    recalls,
    seconds_per_query,
)
from chiasm.index.build.project import fit_projection
from chiasm.index.build.report import Measured, SmallVectors
from chiasm.index.build.samples import Queries, QuerySets
from chiasm.index.build.train import Projection, encoded_index, train
from chiasm.index.build.truth import exact_top, recall_of, without_own
from chiasm.index.plan import IndexSettings, Plan
from chiasm.index.query import EXTRA_CANDIDATES, ColumnIndex
from chiasm.index.segments import Trained, code_ranges

QUERIES = 800  # of a kind and a trial: the same for all plans
DESCRIBED = 100  # queries of each kind for what a report says of a trial
DEEPEST = 100
ITERATIONS = 4  # of k-means, over
PER_LIST = 16  # rows a list: enough to compare plans
TIMED = 320  # queries: five batches
SAMPLE = "sample"


@dataclass(frozen=True)
class Trial:
    """A plan with the lists that it needs, and what a query costs then. recall: the least of text
    and picture queries."""

    plan: Plan
    seconds: float
    measured: Measured
    recall: float

    @property
    def order(self) -> tuple[bool, float]:
        """The cheapest that reaches the recall comes first."""
        return (False, self.seconds) if self.measured.reached else (True, -self.recall)


@dataclass(frozen=True)
class SampleSegment:
    """The sample, as a column's only segment. sample (n, D) float16; index: of FAISS."""

    sample: np.ndarray
    index: Any
    in_store = False

    @property
    def record(self) -> SimpleNamespace:
        lists = SimpleNamespace(size=len(self) * (self.index.code_size + 8))
        return SimpleNamespace(vectors={SAMPLE: len(self)}, files={f"{SAMPLE}.lists": lists})

    def __len__(self) -> int:
        return len(self.sample)

    def deleted(self) -> None:
        return None

    def has(self, column: str) -> None:
        return None

    def raw(self, column: str) -> np.ndarray:
        return self.sample

    def vectors(self, column: str) -> np.ndarray:
        return self.sample

    def lists(self, column: str, trained: Trained) -> Any:
        return self.index


@dataclass(frozen=True)
class Made:
    """The sample, indexed for a trial. index: in the lists of the column, sizes (L,) int64: of
    these. timed: in fewer lists, which have as many rows as those of the column will."""

    index: ColumnIndex
    timed: ColumnIndex
    sizes: np.ndarray

    def with_nprobe(self, nprobe: int, xq: np.ndarray) -> tuple[Made, float]:
        """Both searched as queries xq (Q, D) of the column are that scan so many lists, and by what
        the time of the second is to be multiplied, since it has no more lists."""
        index = replace(self.index, plan=replace(self.index.plan, nprobe=nprobe))
        trained = index.trained
        assert trained is not None
        ranked = trained.rank(xq, trained.queries(xq), nprobe)
        # Lists that queries scan are not of the mean size.
        lists = self.sizes[ranked].sum(axis=1).mean() / self.sizes.mean()
        scanned = min(self.timed.plan.lists, max(1, round(lists)))
        timed = replace(self.timed, plan=replace(self.timed.plan, nprobe=scanned))
        return replace(self, index=index, timed=timed), max(1.0, lists / scanned)

    def seconds_per_query(self, xq: np.ndarray, at: int, factor: float) -> float:
        """What a query of the column costs."""
        spent = seconds_per_query(self.timed, xq, at, self.timed.plan.nprobe)
        return factor * spent + self._ranking_seconds(xq)

    def _ranking_seconds(self, xq: np.ndarray) -> float:
        """What ranking the lists of one costs a query beyond ranking those of the other."""
        spent = []
        for one in (self.timed, self.index):
            trained = one.trained
            assert trained is not None
            coded = trained.queries(xq)
            began = time.thread_time()
            for start in range(0, len(xq), BATCH):
                some = slice(start, start + BATCH)
                trained.rank(xq[some], coded[some], one.plan.nprobe)
            spent.append((time.thread_time() - began) / len(xq))
        return max(0.0, spent[1] - spent[0])


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
    projection: Projection = field(init=False)
    tried: list[Trial] = field(default_factory=list)
    _assigned: dict[tuple[str, int, int], tuple[np.ndarray, np.ndarray]] = field(
        default_factory=dict
    )

    def __post_init__(self) -> None:
        self.vectors = self.rows.astype(np.float16)
        self.deepest = max(DEEPEST, self.settings.at)
        self.cases = {
            kind: Case(some, self.exact(some, self.vectors))
            for kind, queries in self.sets.tune.items()
            if len(some := queries[:QUERIES])
        }
        allowed = random_filter([len(self.rows)], seed=0)
        main = self.cases[self.sets.kind].queries[:DESCRIBED]
        passed = self.exact(main, self.vectors[allowed[0]])
        self.cases[FILTERED] = Case(main, passed, allowed)
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

    def exact(self, queries: Queries, vectors: np.ndarray) -> np.ndarray:
        scores, _ = exact_top([(0, vectors)], queries.vectors, self.deepest + 1)
        return without_own(scores, queries.own)

    def run(self, plan: Plan) -> Trial:
        """Try a plan."""
        for trial in self.tried:
            if replace(trial.plan, nprobe=0) == replace(plan, nprobe=0):
                return trial
        began = time.perf_counter()
        made = self.make(plan)
        seconds = time.perf_counter() - began
        with one_thread():
            trial = self._measure(made, seconds)
        self.tried.append(trial)
        return trial

    def _measure(self, made: Made, seconds: float) -> Trial:
        plan, settings = made.index.plan, self.settings
        recall_by_nprobe: dict[int, float] = {}

        def recall_at(nprobe: int) -> float:
            if nprobe not in recall_by_nprobe:
                recall_by_nprobe[nprobe] = self._recall(made.index, nprobe)
            return recall_by_nprobe[nprobe]

        found: int | None = min(settings.nprobe, plan.lists)
        if not found:
            before = self.tried[-1].plan if self.tried else replace(plan, nprobe=plan.lists // 16)
            guess = before.nprobe * plan.lists // before.lists
            found = least_nprobe(recall_at, settings.recall, guess, plan.lists)
        nprobe = found or plan.lists
        xq = self.cases[self.sets.kind].queries.vectors[:TIMED]
        made, factor = made.with_nprobe(nprobe, xq)
        spent = made.seconds_per_query(xq, settings.at, factor)
        measured = measure(
            made.index,
            {kind: case.first(DESCRIBED) for kind, case in self.cases.items()},
            settings.at,
            timed=made.timed,
            query_seconds=spent,
            size=plan_bytes(plan, self.total, self.rows.shape[1]),
            seconds=seconds,
            reached=found is not None,
        )
        return Trial(made.index.plan, spent, measured, recall_at(nprobe))

    def _recall(self, index: ColumnIndex, nprobe: int) -> float:
        """The least mean recall of text and picture queries."""
        wanted = self.candidates(index.plan)
        plain = [case for kind, case in self.cases.items() if kind != FILTERED]
        found = (recalls(index, case, self.at, nprobe, wanted) for case in plain)
        return min(float(np.nanmean(one)) for one in found)

    def make(self, plan: Plan) -> Made:
        """The sample, indexed. Of the fewer lists each has the rows of several others."""
        key = (plan.space, plan.dims if plan.space == "projected" else 0, plan.lists)
        centroids, lists = self._assigned.get(key, (None, None))
        trained = train(
            plan,
            self.training,
            self.sets.learn,
            projection=self.projection,
            centroids=centroids,
            iterations=ITERATIONS,
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
        return Made(
            self._column(trained, coded, lists),
            self._column(part, coded, merged[lists]),
            np.bincount(lists, minlength=plan.lists),
        )

    def _column(self, trained: Trained, coded: np.ndarray, lists: np.ndarray) -> ColumnIndex:
        segment: Any = SampleSegment(self.vectors, encoded_index(trained, coded, lists))
        index = ColumnIndex([segment], SAMPLE, trained.plan, trained)
        index.open()
        return index

    def small_vectors(self, dims: int) -> list[SmallVectors]:
        """What is lost by scoring with smaller vectors than the stored ones: bytes of 8 bits, the
        projection to `dims`, and the first `dims` numbers."""
        xq, rows = self.cases[self.sets.kind].queries.vectors[:DESCRIBED], self.rows
        low, width = code_ranges(rows)
        bytes_ = np.rint((rows - low) / width * 255) / 255 * width + low
        onto_rows, onto_queries = (side[:, :dims] for side in self.projection)
        norms = np.maximum(np.linalg.norm(rows[:, :dims], axis=1, keepdims=True), 1e-12)
        ways = [
            ("8 bits a number", rows.shape[1], xq, bytes_.astype(np.float32)),
            (f"the projection to {dims}, float16", 2 * dims, xq @ onto_queries, rows @ onto_rows),
            (f"the first {dims} numbers, float16", 2 * dims, xq[:, :dims], rows[:, :dims] / norms),
        ]
        return [
            SmallVectors(name, size, self._recall_of_ranking(queries, vectors))
            for name, size, queries, vectors in ways
        ]

    def _recall_of_ranking(self, queries: np.ndarray, vectors: np.ndarray) -> dict[int, float]:
        case = self.cases[self.sets.kind].first(len(queries))
        _, ranked = exact_top([(0, vectors)], queries, DEEPEST)
        near = np.stack(
            [
                self.vectors[rows].astype(np.float32) @ query
                for rows, query in zip(ranked, case.queries.vectors, strict=True)
            ]
        )
        return {
            k: round(float(np.nanmean(recall_of(-np.sort(-near[:, :k], axis=1), case.exact, k))), 4)
            for k in (1, 10, 100)
        }


def plan_bytes(plan: Plan, rows: int, dim: int) -> int:
    """What an open index of a column keeps in memory: codes and row numbers, centroids and
    projections; of an exact one its vectors. The vectors that candidates are scored by are mapped
    besides, and a query reads some tens of them."""
    if plan.exact:
        return 2 * dim * rows
    width = plan.dims if plan.space == "projected" else dim
    shared = plan.lists * (4 * width + 4)
    if plan.family == "projected":
        shared += 2 * 4 * dim * plan.dims
    return rows * (plan.code_size + 8) + shared

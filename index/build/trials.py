"""A sample of a column's rows, on which plans are tried.

A trial trains a plan on the sample, encodes it, finds the number of lists that reaches the recall,
and takes the time of a query there, by the same search that answers people.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
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
from chiasm.index.faiss_runtime import load_faiss
from chiasm.index.plan import IndexSettings, Plan, lists_for
from chiasm.index.query import ColumnIndex, exact_top, recall_of, without_own
from chiasm.index.segments import Trained, code_ranges

QUERIES = 400  # of a kind and a trial: recall to about half a percent, the same for all plans
DESCRIBED = 100  # queries of each kind for what a report says of a trial
DEEPEST = 100
LEAST_LISTS = 64  # of the sample: below it the number that is scanned is too coarse to compare
ITERATIONS = 4  # of k-means, over
PER_LIST = 32  # rows a list: enough to compare plans
SAMPLE = "sample"


@dataclass(frozen=True)
class Trial:
    """A plan with the lists that it needs on the sample, and what a query costs then. recall: the
    least of text and picture queries."""

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
    deletions = None

    @property
    def record(self) -> SimpleNamespace:
        lists = SimpleNamespace(size=len(self) * (self.index.code_size + 8))
        files = {f"{SAMPLE}.lists": lists}
        return SimpleNamespace(id=SAMPLE, vectors={SAMPLE: len(self)}, files=files)

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

    def is_whole(self, column: str, trained: Trained | None) -> bool:
        return True

    def list_sizes(self, column: str, trained: Trained) -> SimpleNamespace:
        lists = self.index.invlists
        rows = [lists.list_size(number) for number in range(lists.nlist)]
        return SimpleNamespace(rows=np.array(rows, np.int64))

    def each_list(self, column: str, trained: Trained) -> Iterator[memoryview]:
        faiss, lists = load_faiss(), self.index.invlists
        for number, size in enumerate(self.list_sizes(column, trained).rows.tolist()):
            if not size:
                yield memoryview(b"")
                continue
            codes = faiss.rev_swig_ptr(lists.get_codes(number), size * self.index.code_size)
            yield memoryview(
                codes.tobytes() + faiss.rev_swig_ptr(lists.get_ids(number), size).tobytes()
            )


@dataclass
class Trials:
    """rows (n, D) float32: the sample. total: rows of the column. settings: what is wanted."""

    rows: np.ndarray
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
        main = self.cases[self.sets.kind].queries
        passed = self.exact(main, self.vectors[allowed[0]])
        self.cases[FILTERED] = Case(main, passed, allowed)
        self.projection = fit_projection(self.sets.learn, self.rows, self.rows.shape[1])

    @property
    def lists(self) -> int:
        """Of the sample: so many that a list has as many rows as with those of `lists_for`."""
        rows_per_list = self.total / lists_for(self.total)
        return max(min(LEAST_LISTS, lists_for(self.total)), round(len(self.rows) / rows_per_list))

    def exact(self, queries: Queries, vectors: np.ndarray) -> np.ndarray:
        scores, _ = exact_top([(0, vectors)], queries.vectors, self.deepest + 1)
        return without_own(scores, queries.own)

    def run(self, plan: Plan) -> Trial:
        """Try a plan whose lists are those of the sample."""
        for trial in self.tried:
            if replace(trial.plan, nprobe=0) == replace(plan, nprobe=0):
                return trial
        began = time.perf_counter()
        index = self.index(plan)
        seconds = time.perf_counter() - began
        with one_thread():
            trial = self._measure(index, seconds)
        self.tried.append(trial)
        return trial

    def _measure(self, index: ColumnIndex, seconds: float) -> Trial:
        settings, at, main = self.settings, self.settings.at, self.cases[self.sets.kind]
        plain = [case for kind, case in self.cases.items() if kind != FILTERED]
        recall_by_nprobe: dict[int, float] = {}

        def recall_at(nprobe: int) -> float:
            some = (recalls(index, case, at, nprobe) for case in plain)
            recall_by_nprobe[nprobe] = min(float(np.nanmean(one)) for one in some)
            return recall_by_nprobe[nprobe]

        lists = index.plan.lists
        found: int | None = min(settings.nprobe, lists)
        if not found:
            before = self.tried[-1].plan if self.tried else replace(index.plan, nprobe=lists // 16)
            guess = before.nprobe * lists // before.lists
            found = least_nprobe(recall_at, settings.recall, guess, lists)
        nprobe = found or lists
        recall = recall_by_nprobe.get(nprobe) or recall_at(nprobe)
        index = replace(index, plan=replace(index.plan, nprobe=nprobe))
        measured = measure(
            index,
            {kind: case.first(DESCRIBED) for kind, case in self.cases.items()},
            at,
            size=plan_bytes(self.full_plan(index.plan), self.total, self.rows.shape[1]),
            seconds=seconds,
            reached=found is not None,
        )
        xq = main.queries.vectors
        spent = seconds_per_query(index, xq, at, nprobe) + self._ranking_seconds(index, xq)
        return Trial(index.plan, spent, measured, recall)

    def _ranking_seconds(self, index: ColumnIndex, xq: np.ndarray) -> float:
        """What ranking the column's lists costs a query beyond ranking those of the sample."""
        trained = index.trained
        assert trained is not None
        rounds = -(-self.full_plan(index.plan).lists // index.plan.lists)
        more = replace(
            trained,
            centroids=np.tile(trained.centroids, (rounds, 1)),
            list_bias=np.tile(trained.list_bias, rounds),
        )
        coded, spent = trained.queries(xq), []
        for one in (trained, more):
            began = time.thread_time()
            for start in range(0, len(xq), BATCH):
                some = slice(start, start + BATCH)
                one.rank(xq[some], coded[some], index.plan.nprobe)
            spent.append((time.thread_time() - began) / len(xq))
        return max(0.0, spent[1] - spent[0])

    def index(self, plan: Plan) -> ColumnIndex:
        """The sample, indexed."""
        key = (plan.space, plan.dims if plan.space == "projected" else 0, plan.lists)
        centroids, lists = self._assigned.get(key, (None, None))
        trained = train(
            plan,
            self.rows,
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
        segment: Any = SampleSegment(self.vectors, encoded_index(trained, coded, lists))
        index = ColumnIndex([segment], SAMPLE, plan, trained)
        index.open()
        return index

    def full_plan(self, plan: Plan) -> Plan:
        """The plan of the whole column that a plan of the sample stands for: the lists in the same
        proportion to `lists_for`."""
        return full_plan(plan, self.total, self.lists)

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


def full_plan(plan: Plan, rows: int, sample_lists: int) -> Plan:
    if plan.exact:
        return plan
    lists = max(1, round(plan.lists / sample_lists * lists_for(rows)))
    nprobe = max(1, round(plan.nprobe * lists / plan.lists))
    return replace(plan, lists=lists, nprobe=min(nprobe, lists))


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

"""Which index suits a column? Chosen by what is measured on a sample of its rows.

    tune_column    before segments are written: family, space, dimensions, lists, ranking and codes
    fit_column     (fit.py) once they are: the number of lists that a query scans, and the promise

Space, dimensions, lists and ranking depend on the data: none of them is a constant. They are
searched one after the other, each with the best of those before (coordinate descent): some ten
plans, most of which share projections and centroids.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from chiasm.index.build.memory import release_free
from chiasm.index.build.promise import promised_recall
from chiasm.index.build.report import Report, Tried
from chiasm.index.build.samples import ColumnView, QuerySets
from chiasm.index.build.train import STARTED, train
from chiasm.index.build.trials import Trial, Trials, plan_bytes
from chiasm.index.plan import (
    MAX_LISTS,
    MIN_PER_LIST,
    TRAIN_PER_LIST,
    IndexSettings,
    Plan,
    default_plan,
    lists_for,
)
from chiasm.index.segments import Trained
from chiasm.index.sizes import format_size
from chiasm.pipeline.errors import ChiasmError, UsageError

LOG = logging.getLogger(__name__)
SAMPLE_ROWS = 65_536
SAMPLE_SHARE = 0.25  # of the memory of a build: rows as float32, beside which there are copies
DIMS = (32, 48, 64, 96, 128)
FIRST_DIMS = 64
SPREAD = 1.5
OVERSAMPLES = (2, 3, 4, 6, 8)
FIRST_OVERSAMPLE = 4
LISTS = (0.5, 1.0, 1.5)  # of what `lists_for` gives
CODES = ("SQ8", "RaBitQ4", "RaBitQ2", "RaBitQ1")  # from the fastest to the smallest


@dataclass(frozen=True)
class TunedColumn:
    """A column's plan and what its segments share, None where it is exact. sets: the queries that
    it was tuned with, None where nothing was measured; then there is no report either.
    tried: for the report."""

    plan: Plan
    trained: Trained | None = None
    sets: QuerySets | None = None
    tried: Tried = field(default_factory=Tried)
    report: Report | None = None


def tune_column(view: ColumnView, settings: IndexSettings) -> TunedColumn:
    """The plan of a column, but for the lists that a query scans (`fit_column`), and what its
    segments share.

    Raises UsageError for settings that no index has, ChiasmError where none keeps the limits.
    """
    if settings.dims > view.dim or (settings.dims and settings.kind == "exact"):
        expected = f"{view.dim} or less, of an index with lists"
        raise UsageError("index.dims", expected=expected, found=str(settings.dims))
    plan = default_plan(view.rows, view.dim, settings)
    if plan.exact or not settings.tune:
        return _untuned(view, plan, settings)
    began = time.perf_counter()
    sets = view.query_sets()
    release_free()
    clock = time.perf_counter()
    if _proves_too_little(view, sets, settings):
        seconds = {"queries": round(clock - began, 2)}
        return TunedColumn(Plan(vectors=plan.vectors), sets=sets, tried=Tried(seconds=seconds))
    wanted = max(SAMPLE_ROWS, int(plan.lists * LISTS[-1]) * TRAIN_PER_LIST)
    sample = view.sample(min(view.rows, wanted, _most_rows(view, settings)))
    release_free()
    trials = Trials(sample[:SAMPLE_ROWS], sample[-SAMPLE_ROWS:], sets, view.rows, settings)
    best = _choose(trials, view, settings)
    small = trials.small_vectors(best.plan.dims if best else FIRST_DIMS)
    plan = Plan(vectors=trials.form) if best is None else best.plan
    tried = time.perf_counter()
    trained = None
    if best is not None:
        plan, trained = _train(best.plan, trials, sample)
    return TunedColumn(
        plan,
        trained,
        sets,
        Tried(
            tuple(trial.measured for trial in trials.tried),
            tuple(small),
            {
                "queries": round(clock - began, 2),
                "trials": round(tried - clock, 2),
                "train": round(time.perf_counter() - tried, 2),
            },
        ),
    )


def _train(tried: Plan, trials: Trials, sample: np.ndarray) -> tuple[Plan, Trained]:
    """Train the plan of a trial on rows (n, D)."""
    plan = replace(tried, train_rows=min(len(sample), tried.lists * TRAIN_PER_LIST))
    trained = train(
        plan,
        sample,
        trials.sets.learn,
        projection=trials.projection,
        start=trials.start(tried),
        iterations=STARTED,
    )
    return plan, trained


def _proves_too_little(view: ColumnView, sets: QuerySets, settings: IndexSettings) -> bool:
    """Whether an index is to be exact since no answers to so few queries, even if all are right,
    promise the recall. Raises ChiasmError where it may not be exact."""
    kinds = [queries for use in (sets.tune, sets.report) for queries in use.values()]
    least = min(len(queries) for queries in kinds if len(queries))
    most = promised_recall(np.ones(least))
    if settings.nprobe or settings.recall <= most:
        return False
    space = PlanSpace(view.rows, view.dim, settings)
    if settings.kind == "" and settings.vectors != "none" and space.fits(space.exact):
        LOG.warning(
            "index of column %s: %d queries of a kind can promise a recall of %.4f at the most; "
            "it is exact, as a recall of %g needs",
            *(view.column, least, most, settings.recall),
        )
        return True
    at_most = math.floor(most * 1000) / 1000
    raise ChiasmError(
        f"index of column {view.column}",
        expected=f"a recall of {at_most:g} or less, which {least} queries of a kind can promise",
        found=f"{settings.recall:g}",
        do=f"give up the recall (--recall {at_most:g}), or --index exact",
    )


def _most_rows(view: ColumnView, settings: IndexSettings) -> int:
    """Of a sample that fits the memory of a build."""
    return int(settings.build_memory_mb * 2**20 * SAMPLE_SHARE) // (4 * view.dim)


def _untuned(view: ColumnView, plan: Plan, settings: IndexSettings) -> TunedColumn:
    """The default plan, unmeasured; of fewer lists where the memory has no room for rows to train
    them with."""
    _require_memory(view, plan, settings)
    if plan.exact:
        return TunedColumn(plan)
    most = _most_rows(view, settings)
    lists = min(plan.lists, max(1, most // MIN_PER_LIST))
    plan = replace(
        plan,
        lists=lists,
        nprobe=min(plan.nprobe, lists),
        train_rows=min(most, lists * TRAIN_PER_LIST, plan.train_rows),
    )
    queries = view.query_sets().learn if plan.family == "projected" else None
    return TunedColumn(plan, train(plan, view.sample(plan.train_rows), queries))


def _choose(trials: Trials, view: ColumnView, settings: IndexSettings) -> Trial | None:
    """The cheapest plan that reaches the recall within the memory; None for an exact index, where
    no other does."""
    most = max(1, _most_rows(view, settings) // MIN_PER_LIST)
    space = PlanSpace(view.rows, view.dim, settings, most)
    first = space.first()
    if not first:
        raise _too_little_memory(view, space.least_bytes())
    best = trials.run(first[0])
    for plan in first[1:]:
        trial = trials.run(plan)
        best = trial if trials.cheaper(trial, best) else best
    for name, values in space.ladders():
        if name == "oversample" and best.measured.reached:
            continue  # it is chosen over all rows
        best = _climb(trials, space, best, name, values)
    if best.measured.reached:
        return best
    if settings.kind == "" and settings.vectors != "none" and space.fits(space.exact):
        return None
    memory = f" within {format_size(settings.memory_bytes)}" if settings.memory_gb else ""
    raise ChiasmError(
        f"index of column {view.column}",
        expected=f"recall@{settings.at} of {settings.recall:g}{memory}",
        found=f"{best.recall:.3f} at the most, by {best.measured.plan} of {len(trials.rows)} rows",
        do="give up the limit of memory" if memory else "give up the recall, or the kind of index",
    )


def _climb(
    trials: Trials, space: PlanSpace, best: Trial, name: str, values: Sequence[Any]
) -> Trial:
    """The best on a ladder, which has one summit: down from a trial or, where that is worse, up."""
    first = best
    for step in (-1, 1):
        while (plan := space.neighbour(best.plan, name, values, step)) is not None:
            trial = trials.run(plan)
            if not trials.cheaper(trial, best):
                break
            best = trial
        if best is not first:
            break
    return best


@dataclass(frozen=True)
class PlanSpace:
    """The plans that may be tried. rows, dim: of the column. most_lists: that there are rows to
    train with, within the memory."""

    rows: int
    dim: int
    settings: IndexSettings
    most_lists: int = MAX_LISTS

    @property
    def lists(self) -> int:
        """To begin with."""
        return min(lists_for(self.rows), self.most_lists)

    @property
    def dims(self) -> list[int]:
        """That a projection may have."""
        some = [self.settings.dims] if self.settings.dims else [d for d in DIMS if d < self.dim]
        return some or [self.dim]

    def first(self) -> list[Plan]:
        """The plan to begin with of each family that fits the memory: the fastest codes that do,
        and of these the dimensions nearest to FIRST_DIMS."""
        return [
            plans[0]
            for family, space in self._families
            if self.settings.kind in ("", family) and (plans := self._of(family, space))
        ]

    @property
    def exact(self) -> Plan:
        return Plan(vectors=self._vectors)

    @property
    def _vectors(self) -> Any:
        return self.settings.vectors

    @property
    def _families(self) -> list[tuple[str, str]]:
        """Of plans with lists, each with the space of its lists."""
        prefix = self.settings.kind == "ivf" and 0 < self.settings.dims < self.dim
        ivf = ("ivf", "projected" if prefix else "full")
        return [("projected", "projected"), ivf]

    def _of(self, family: Any, space: Any, fitting: bool = True) -> list[Plan]:
        near = sorted(self.dims, key=lambda dims: abs(dims - FIRST_DIMS))
        plans = [
            Plan(
                *(family, self.lists, 0, space, dims, codes, SPREAD, FIRST_OVERSAMPLE),
                vectors=self._vectors,
            )
            for codes in CODES
            for dims in ([self.dim] if (family, space) == ("ivf", "full") else near)
            # These codes are of differences to centroids.
            if codes == "SQ8" or family == "ivf" or space == "projected"
        ]
        return [plan for plan in plans if self.fits(plan) or not fitting]

    def ladders(self) -> list[tuple[str, Sequence[Any]]]:
        """What else is varied: a field of plans, and its values in order."""
        most = max(1, min(self.most_lists, self.rows // MIN_PER_LIST))
        lists = sorted({min(most, max(1, round(share * self.lists))) for share in LISTS})
        return [
            ("dims", self.dims),
            ("space", ("projected", "full")),
            ("lists", lists),
            ("spread", (0.0, SPREAD)),
            ("oversample", OVERSAMPLES),
        ]

    def neighbour(self, plan: Plan, name: str, values: Sequence[Any], step: int) -> Plan | None:
        """The plan next to this one on a ladder, down or up; None where there is none that fits."""
        if getattr(plan, name) not in values:
            return None
        if name == "space" and (plan.family == "ivf" or plan.codes != "SQ8"):
            return None  # their codes and their lists are of one space
        place = values.index(getattr(plan, name)) + step
        if not 0 <= place < len(values):
            return None
        near = replace(plan, nprobe=0, **{name: values[place]})
        return near if self.fits(near) else None

    def fits(self, plan: Plan) -> bool:
        settings = self.settings
        return not settings.memory_gb or self._bytes(plan) <= settings.memory_bytes

    def _bytes(self, plan: Plan) -> int:
        return plan_bytes(plan, self.rows, self.dim)

    def least_bytes(self) -> int:
        """Of any plan of the kinds that may be tried."""
        plans = [
            plan
            for family, space in self._families
            if self.settings.kind in ("", family)
            for plan in self._of(family, space, fitting=False)
        ]
        return min(self._bytes(plan) for plan in plans)


def _require_memory(view: ColumnView, plan: Plan, settings: IndexSettings) -> None:
    needed = plan_bytes(plan, view.rows, view.dim)
    if settings.memory_gb and needed > settings.memory_bytes:
        raise _too_little_memory(view, needed)


def _too_little_memory(view: ColumnView, least: int) -> ChiasmError:
    size = format_size(least)
    return ChiasmError(
        f"index of column {view.column}",
        expected=f"a limit of memory of {size} or more for {view.rows:,} rows",
        found="less",
        do=f"give up the limit: --memory {size.replace(' ', '')}",
    )

"""A built index, measured over all its rows: how many lists its queries scan, and what is promised.

The queries to tune on choose the number of lists such that the promise, not the mean, reaches the
recall. The queries to report on have chosen nothing by then. Where their promise falls short by
chance, more lists are scanned until it does not: recall grows with the number of lists, and for
such a family taking the first member whose limit suffices costs no confidence (Bates et al., 2021,
"Distribution-free, risk-controlling prediction sets").
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from chiasm.index.build.exact_rows import ExactRows
from chiasm.index.build.measure import (
    FILTERED,
    SINGLE,
    Case,
    Search,
    latencies,
    least_nprobe,
    measure,
    one_thread,
    random_filter,
    recalls,
    seconds_per_query,
)
from chiasm.index.build.memory import release_vectors
from chiasm.index.build.promise import promised_recall
from chiasm.index.build.report import CurvePoint, Report
from chiasm.index.build.trials import DEEPEST, plan_bytes
from chiasm.index.build.tune import OVERSAMPLES, TunedColumn
from chiasm.index.plan import IndexSettings, Plan
from chiasm.index.query import ColumnIndex, rows_of_column, search_filtered, search_lists
from chiasm.pipeline.errors import ChiasmError
from chiasm.pipeline.storage import Folder

STEP = 1.125  # by which lists are added where the promise falls short
MOST_MISSED, LEAST_MISSED, MISSED_STEP = 0.05, 1e-4, 1.5
CURVE = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the lists that the plan scans
CHOOSING = 320  # queries of a kind that the number of candidates is chosen by
HARDER = (*OVERSAMPLES, 12, 16, 32)  # candidates a result, where the sample's number is too few


def fit_column(
    tuned: TunedColumn,
    index: ColumnIndex,
    settings: IndexSettings,
    build_seconds: float,
    folder: Folder | None = None,
) -> TunedColumn:
    """The column with the number of lists that the recall needs, and its report.

    index: of the segments that were written, all rows of the column. build_seconds: that training
    and writing took. folder: of the embeddings, whose vectors are the truth where the segments have
    other ones; None for those of the segments. Raises ChiasmError where no number of lists keeps
    the recall or the latency.
    """
    if tuned.sets is None:
        if settings.latency_ms:
            _require_latency_of_rows(index, settings)
        return tuned
    began = time.perf_counter()
    index.open()
    cases = _cases(tuned, index, max(DEEPEST, settings.at), folder)
    exact_done = time.perf_counter()
    fitted = _Fit(index, cases, settings)
    with one_thread():
        plan = fitted.plan()
        report = _report(tuned, replace(index, plan=plan), cases, settings, build_seconds)
        release_vectors(index)
    seconds = tuned.tried.seconds | {
        "exact answers": round(exact_done - began, 2),
        "fit": round(time.perf_counter() - exact_done, 2),
    }
    found = f"{report.measured.p99_ms:.3g} ms by {report.measured.plan}"
    _require_latency(index, report.measured.p99_ms, settings, found)
    return replace(tuned, plan=plan, report=replace(report, seconds=seconds))


class _Fit:
    """Finds the plan: cases by use, then by kind of query."""

    def __init__(
        self, index: ColumnIndex, cases: dict[str, dict[str, Case]], settings: IndexSettings
    ) -> None:
        self.index, self.settings = index, settings
        self.tune, self.report = cases["tune"], cases["report"]
        self.kind = next(iter(self.tune))

    def plan(self) -> Plan:
        plan = self.index.plan
        if plan.exact or self.settings.nprobe:
            return replace(plan, nprobe=min(plan.lists, self.settings.nprobe))
        plan = self._cheapest(plan)
        nprobe = self._least(plan, _plain(self.tune), plan.nprobe) or plan.lists
        nprobe = self._enough(plan, _plain(self.report), nprobe)
        plan = replace(plan, nprobe=nprobe)
        return replace(plan, missed=self._missed(plan))

    def _missed(self, plan: Plan) -> float:
        """The greatest share of the best rows that filtered queries may miss and keep the recall;
        less, for the queries to report on, as with `_enough`. By lists, though so few rows may
        pass that all would be scored: other filters let more pass."""
        missed = MOST_MISSED
        for cases in (self.tune, self.report):
            case = [cases[FILTERED]]
            while missed > LEAST_MISSED and self.settings.recall > self._promised(
                replace(plan, missed=missed), case, plan.nprobe, search_lists
            ):
                missed /= MISSED_STEP
        return missed

    def _cheapest(self, plan: Plan) -> Plan:
        """Candidates a result, from those that the sample chose to fewer or more while that is
        cheaper, each number with the lists that it needs."""
        place = HARDER.index(plan.oversample)
        best = self._with_lists(plan, HARDER[place])
        for step in (-1, 1):
            number = place + step
            while 0 <= number < len(HARDER):
                near = self._with_lists(best[1] if best else plan, HARDER[number])
                if best and (near is None or near[0] >= best[0]):
                    break
                best, number = near or best, number + step
            if best and best[1].oversample < plan.oversample:
                break
        if best:
            return best[1]
        cases = _plain(self.tune)
        most = self._promised(replace(plan, oversample=HARDER[-1]), cases, plan.lists)
        raise ChiasmError(
            f"index of column {self.index.column}",
            expected=f"a promised recall@{self.settings.at} of {self.settings.recall:g}",
            found=f"{most:.3f} at the most, by {plan}",
            do=f"give up the recall (--recall {math.floor(most * 100) / 100:g}), or --index exact",
        )

    def _with_lists(self, plan: Plan, oversample: int) -> tuple[float, Plan] | None:
        """The plan with so many candidates a result and the lists that it needs, and the seconds of
        a query; None where no number of lists does."""
        plan = replace(plan, oversample=oversample)
        nprobe = self._least(plan, _plain(self.tune), plan.nprobe, first=CHOOSING)
        if nprobe is None:
            return None
        plan = replace(plan, nprobe=nprobe)
        index, xq = replace(self.index, plan=plan), self.tune[self.kind].queries.vectors[:CHOOSING]
        return seconds_per_query(index, xq, self.settings.at, nprobe), plan

    def _promised(
        self,
        plan: Plan,
        cases: list[Case],
        nprobe: int,
        by: Search = search_filtered,
        first: int | None = None,
    ) -> float:
        """The least of the promises of these kinds of query; what comes after one that
        falls short is not looked at. first: so many queries of a kind are searched, and stand for
        all of it."""
        index, promised = replace(self.index, plan=replace(plan, nprobe=nprobe)), 1.0
        for case in cases:
            found = recalls(index, case.first(first), self.settings.at, nprobe, by=by)
            release_vectors(index)
            promised = min(promised, promised_recall(np.resize(found, len(case.queries))))
            if promised < self.settings.recall:
                break
        return promised

    def _least(
        self, plan: Plan, cases: list[Case], guess: int, first: int | None = None
    ) -> int | None:
        return least_nprobe(
            lambda nprobe: self._promised(plan, cases, nprobe, first=first),
            self.settings.recall,
            guess,
            plan.lists,
        )

    def _enough(self, plan: Plan, cases: list[Case], nprobe: int) -> int:
        """So many lists or more, until the promise suffices."""
        while nprobe < plan.lists and self._promised(plan, cases, nprobe) < self.settings.recall:
            nprobe = min(plan.lists, math.ceil(nprobe * STEP))
        return nprobe


def _plain(cases: dict[str, Case]) -> list[Case]:
    """Those without a filter."""
    return [case for kind, case in cases.items() if kind != FILTERED]


def _cases(
    tuned: TunedColumn, index: ColumnIndex, deepest: int, folder: Folder | None
) -> dict[str, dict[str, Case]]:
    """The queries to tune and to report on, with their exact answers over all rows. One pass over
    the rows answers all that have no filter."""
    sets = tuned.sets
    assert sets is not None
    uses = {"tune": sets.tune, "report": sets.report}
    plain = [
        (use, kind, queries)
        for use, kinds in uses.items()
        for kind, queries in kinds.items()
        if len(queries)
    ]
    rows = ExactRows(index, folder)
    groups = [queries for _, _, queries in plain]
    cases: dict[str, dict[str, Case]] = {use: {} for use in uses}
    for (use, kind, _), case in zip(plain, rows.cases(groups, deepest), strict=True):
        cases[use][kind] = case
    allowed = random_filter([len(segment) for segment in index.segments], seed=1)
    mains = [cases[use][sets.kind].queries for use in uses]
    for use, case in zip(uses, rows.cases(mains, deepest, allowed), strict=True):
        cases[use][FILTERED] = case
    return cases


def _report(
    tuned: TunedColumn,
    index: ColumnIndex,
    cases: dict[str, dict[str, Case]],
    settings: IndexSettings,
    build_seconds: float,
) -> Report:
    assert tuned.sets is not None
    plan, at, report = index.plan, settings.at, cases["report"]
    rows = sum(segment.record.vectors[index.column] for segment in index.segments)
    sure = plan.exact and plan.vectors == "float16"  # what is wanted is what is scanned
    answered = {} if sure else {kind: recalls(index, case, at) for kind, case in report.items()}
    promise = {
        kind: promised_recall(answered[kind]) if kind in answered else 1.0 for kind in report
    }
    dim = tuned.sets.learn.shape[1]
    reached = promise[tuned.sets.kind] >= settings.recall
    size = plan_bytes(plan, rows, dim)
    xq = report[tuned.sets.kind].queries.vectors
    measured = measure(
        index,
        report,
        at,
        timed=index,
        query_seconds=seconds_per_query(index, xq, at, plan.nprobe),
        size=size,
        seconds=build_seconds,
        reached=reached,
        answered=answered,
    )
    counts = {
        "learn from": len(tuned.sets.learn),
        "tune on": len(tuned.sets.tune[tuned.sets.kind]),
        "report on": len(tuned.sets.report[tuned.sets.kind]),
    }
    return Report(
        column=index.column,
        rows=rows,
        recall=settings.recall,
        at=at,
        source=tuned.sets.source,
        queries=counts,
        promise={kind: round(value, 4) for kind, value in promise.items()},
        measured=measured,
        candidates=tuned.tried.candidates,
        curve=tuple(_curve(index, report[tuned.sets.kind], at)),
        small_vectors=tuned.tried.small_vectors,
    )


def _curve(index: ColumnIndex, case: Case, at: int) -> Iterator[CurvePoint]:
    if index.plan.exact:
        return
    some = case.first(SINGLE)
    counts = [round(share * index.plan.nprobe) for share in CURVE]
    for nprobe in sorted({min(max(1, count), index.plan.lists) for count in counts}):
        recall = float(np.nanmean(recalls(index, some, at, nprobe)))
        seconds = seconds_per_query(index, some.queries.vectors, at, nprobe, rounds=1)
        yield CurvePoint(nprobe, round(recall, 4), round(1 / seconds, 1))


def _require_latency_of_rows(index: ColumnIndex, settings: IndexSettings) -> None:
    """The latency of an index that nobody measures, for queries that are rows of it."""
    xq = next((rows for _, rows in rows_of_column(index)), np.empty((0, 1)))[:SINGLE]
    xq = xq.astype(np.float32)
    if len(xq):
        with one_thread():
            _, p99 = latencies(index, xq, settings.at, index.plan.nprobe)
        _require_latency(index, p99, settings, f"{p99:.3g} ms by {index.plan}")


def _require_latency(index: ColumnIndex, p99: float, settings: IndexSettings, found: str) -> None:
    limit = settings.latency_ms
    if limit and p99 > limit:
        recall = "" if index.plan.exact else f" at recall@{settings.at} {settings.recall:g}"
        raise ChiasmError(
            f"index of column {index.column}",
            expected=f"99 % of queries within {limit:g} ms{recall}",
            found=found,
            do=f"give up the latency (--latency {math.ceil(p99 * 10) / 10:g}ms)"
            + (" or the recall" if recall else ""),
        )

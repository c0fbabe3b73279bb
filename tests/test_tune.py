"""Which index a column gets: plans are tried on a sample, fitted on all rows, and reported."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_collection import unit_rows

from chiasm.index.audit import Promise
from chiasm.index.build.fit import _report, fit_column
from chiasm.index.build.measure import FILTERED, Case, least_nprobe, random_filter, recalls
from chiasm.index.build.memory import release_memory, release_pages
from chiasm.index.build.plot import draw_reports
from chiasm.index.build.report import Report
from chiasm.index.build.samples import Queries, QuerySets, query_lines
from chiasm.index.build.train import encoded_index, list_deviations, means, train
from chiasm.index.build.trial_index import SAMPLE, SampleSegment
from chiasm.index.build.trials import Trial, Trials, plan_bytes
from chiasm.index.build.tune import PlanSpace, TunedColumn, tune_column
from chiasm.index.plan import IndexSettings, Plan, lists_for
from chiasm.index.query import ColumnIndex, Ranked, search, search_lists
from chiasm.index.query.truth import exact_top, recall_of
from chiasm.index.segments import FORMS, Float16Vectors
from chiasm.pipeline.errors import ChiasmError, CollectionError, UsageError
from chiasm.pipeline.stored_records import read_record

ROWS, DIM, INNER = 2000, 32, 6
MEASURED = IndexSettings(exact_below=100, recall=0.9)


def _world(rng: np.random.Generator) -> Any:
    """Pictures near a subspace of INNER dimensions, and texts near it, apart from them."""
    inner = np.linalg.qr(rng.normal(size=(DIM, INNER)))[0].T
    gaps = 0.7 * unit_rows(rng, 2, DIM)

    def vectors(count: int, gap: int) -> np.ndarray:
        x = rng.normal(size=(count, INNER)) @ inner / INNER**0.5
        x += 0.03 * rng.normal(size=(count, DIM)) + gaps[gap]
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)

    return vectors


class ArrayView:
    """A column as tuning sees it, of arrays."""

    column, rows, dim = SAMPLE, ROWS, DIM

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        vectors = _world(self.rng)
        self.stored = vectors(ROWS, 0).astype(np.float16)
        texts = [Queries.of(vectors(200, 1)) for _ in range(2)]
        pictures = [self.pictures(some) for some in np.split(self.rng.permutation(ROWS)[:200], 2)]
        learn = np.concatenate([vectors(500, 1), vectors(50, 0)])
        tune, report = (
            {"text": text, "picture": picture}
            for text, picture in zip(texts, pictures, strict=True)
        )
        self.sets = QuerySets(learn, tune, report, "text queries: drawn")

    def pictures(self, rows: np.ndarray) -> Queries:
        x = self.stored[rows].astype(np.float32)
        return Queries(x, np.einsum("nd,nd->n", x, x))

    def sample(self, wanted: int) -> np.ndarray:
        return self.stored[self.rng.permutation(ROWS)[:wanted]].astype(np.float32)

    def query_sets(self) -> QuerySets:
        return self.sets


def built(view: ArrayView, tuned: TunedColumn, parts: int = 2) -> ColumnIndex:
    """The column of several segments, as a build would have written them."""
    trained, segments = tuned.trained, []
    for part in np.array_split(view.stored, parts):
        index = SimpleNamespace(code_size=0)
        if trained is not None:
            coded = np.ascontiguousarray(trained.rows(part.astype(np.float32)))
            lists = trained.assign(part.astype(np.float32), coded)
            index = encoded_index(trained, coded, lists)
        segments.append(SampleSegment(Float16Vectors(part), index))
    return ColumnIndex(segments, SAMPLE, tuned.plan, trained)


class Unmapped(ColumnIndex):
    """An exact column whose vectors no file has, for FAISS to map: it is scanned by row numbers."""

    def rows_of(self, number: int, allowed: np.ndarray | None) -> np.ndarray:
        return np.ones(len(self.segments[number]), bool) if allowed is None else allowed


@pytest.fixture(scope="module")
def tuned() -> tuple[ArrayView, TunedColumn, ColumnIndex]:
    view = ArrayView()
    chosen = tune_column(view, MEASURED)
    index = built(view, chosen)
    fitted = fit_column(chosen, index, MEASURED, 1.5)
    return view, fitted, replace(index, plan=fitted.plan)


def test_the_built_plan_keeps_its_promise_on_queries_that_nobody_saw(tuned):
    view, column, index = tuned
    report, plan = column.report, column.plan
    assert not plan.exact and 0 < plan.nprobe <= plan.lists == column.trained.plan.lists
    assert set(report.promise) == {"text", "picture", FILTERED}
    assert min(report.promise.values()) >= MEASURED.recall or plan.nprobe == plan.lists
    unseen = _world(np.random.default_rng(0))(300, 1)
    exact, _ = exact_top([(0, view.stored)], unseen, 10)
    found, _ = search(index, unseen, 10, plan.nprobe)
    assert recall_of(found, exact, 10).mean() >= report.promise["text"]
    for kind, promise in report.promise.items():
        assert promise <= report.measured.recall[kind][10] <= promise + 0.05


def test_a_filter_gets_the_lists_that_it_needs(tuned):
    view, column, index = tuned
    plan = column.plan
    assert 0 < plan.missed < 1
    allowed = random_filter([len(segment) for segment in index.segments], seed=7)
    xq = view.sets.report["text"].vectors
    passed = view.stored[np.concatenate(allowed)]
    exact, _ = exact_top([(0, passed)], xq, 10)
    found, _ = search_lists(index, xq, 10, plan.nprobe, allowed)
    assert recall_of(found, exact, 10).mean() >= MEASURED.recall - 0.02


def test_a_report_has_every_candidate_and_is_read_back(tuned):
    _, column, _ = tuned
    report = column.report
    assert report.queries == {"learn from": 550, "tune on": 200, "report on": 200}
    assert report.measured.rows == report.rows == ROWS and report.measured.build_seconds == 1.5
    plans = [one.plan for one in report.candidates]
    assert len(plans) >= 4 and any(plan.startswith("ivf") for plan in plans)
    assert any(one.reached for one in report.candidates)
    for one in (report.measured, *report.candidates):
        assert set(one.recall) == {"text", "picture", FILTERED}
        assert all(set(recall) == {1, 10, 100} for recall in one.recall.values())
        assert 0 < one.p50_ms <= one.p99_ms and one.queries_per_second > 0 and one.bytes > 0
    recalls_of_curve = [point.recall for point in report.curve]
    assert recalls_of_curve == sorted(recalls_of_curve) and len(recalls_of_curve) > 1
    in_parquet, eight_bits, *fewer = report.small_vectors
    assert in_parquet.bytes == 0 and set(in_parquet.recall.values()) == {1.0}
    assert eight_bits.bytes == DIM + 4 and eight_bits.recall[10] > 0.9
    assert all(small.bytes == 2 * column.plan.dims for small in fewer)
    assert Report.from_json(report.to_json(), "r", "") == report
    promise = read_record(report.to_json(), "r", Promise, what="a report")  # as audits read it
    assert promise == Promise(report.at, report.promise)
    with pytest.raises(CollectionError, match=r"r: expected a report of an index, found promise"):
        Report.from_json(
            report.to_json().replace(b'"promise": {', b'"promise": 1, "x": {'), "r", ""
        )
    lines = list(report.lines())
    assert "text queries: drawn" in lines[0] and "promised recall@10: text 0.9" in lines[1]
    assert len(lines) == 4 + len(plans) + 4
    # A column for every cell, whatever `at` is: the names stand above what they name.
    twenty = {kind: {**recall, 20: 0.5} for kind, recall in report.measured.recall.items()}
    widest = replace(report, at=20, measured=replace(report.measured, recall=twenty))
    cells = []
    for one, names in ((report, "@1/10/100"), (widest, "@1/10/20/100")):
        table = list(one.lines())[2 : 4 + len(plans)]
        cells = [re.split(" {2,}", line) for line in table]
        assert len({*map(len, table)}) == 1 and {*map(len, cells)} == {12}
        assert cells[0][5:7] == [f"text {names}", f"picture {names}"]
    assert cells[1][5].split()[2] == "0.500" and cells[2][5].split()[2] == "-"
    assert draw_reports([report]).startswith(b"\x89PNG")


def test_more_recall_scans_more_lists(tuned):
    _, column, index = tuned
    more = fit_column(replace(column, report=None), index, replace(MEASURED, recall=0.95), 0)
    assert more.plan.nprobe >= column.plan.nprobe
    assert more.report.promise["text"] >= 0.95
    fixed = fit_column(column, index, replace(MEASURED, nprobe=1), 0)
    assert fixed.plan.nprobe == 1 and not fixed.report.measured.reached


def test_limits_that_no_index_keeps_are_named(tuned):
    view, column, index = tuned
    with pytest.raises(ChiasmError, match=r"memory of .*B or more .* give up the limit: --mem"):
        tune_column(view, replace(MEASURED, memory_gb=1e-6))
    with pytest.raises(ChiasmError, match=r"within 1e-06 ms .* give up the latency \(--latency"):
        fit_column(column, index, replace(MEASURED, latency_ms=1e-6), 0)
    with pytest.raises(ChiasmError, match=r"promised recall@10 of 0.999, found 0.98.*--index ex"):
        fit_column(column, index, replace(MEASURED, recall=0.999), 0)
    for settings in (
        replace(MEASURED, dims=33),
        replace(MEASURED, dims=8, kind="exact"),
    ):
        with pytest.raises(UsageError, match=r"index.dims: expected 32 or less, of an index with"):
            tune_column(view, settings)


def test_the_latency_of_an_index_that_is_not_tuned_is_a_limit_too(tuned):
    view, _, _ = tuned
    segment: Any = SampleSegment(Float16Vectors(view.stored), SimpleNamespace(code_size=0))
    index, column = Unmapped([segment], SAMPLE, Plan(), None), TunedColumn(Plan())
    assert fit_column(column, index, replace(MEASURED, latency_ms=1e6), 0) is column
    limits = r"^index of column .*: expected 99 % of queries within 1e-06 ms, found .* ms by exact"
    with pytest.raises(
        ChiasmError, match=limits + r"; give up the latency \(--latency [\d.]+ms\)$"
    ):
        fit_column(column, index, replace(MEASURED, latency_ms=1e-6), 0)


def test_a_recall_near_one_is_promised_by_as_many_queries_as_it_takes(caplog):
    view, many = ArrayView(), 900
    vectors = _world(np.random.default_rng(0))
    sets = [
        {"text": Queries.of(vectors(many, 1)), "picture": view.pictures(some)}
        for some in np.split(view.rng.permutation(ROWS)[: 2 * many], 2)
    ]
    view.sets = QuerySets(view.sets.learn, *sets, "text queries: drawn")
    wanted = replace(MEASURED, recall=0.99, kind="ivf")
    chosen = tune_column(view, wanted)
    fitted = fit_column(chosen, built(view, chosen), wanted, 0)
    assert not fitted.plan.exact and min(fitted.report.promise.values()) >= 0.99
    assert fitted.plan.nprobe < fitted.plan.lists

    beyond = replace(wanted, recall=0.996)
    with pytest.raises(ChiasmError, match=r"recall of 0.994 or less, which 900 queries .* 0.994\)"):
        tune_column(view, beyond)
    exact = tune_column(view, replace(beyond, kind=""))
    assert exact.plan.exact and exact.sets is view.sets and "it is exact, as a" in caplog.text
    with pytest.raises(ChiasmError, match=r"900 queries of a kind can promise, found 0.996"):
        tune_column(view, replace(beyond, kind="", memory_gb=1e-5))


def test_rows_that_are_equal_are_not_all_looked_at_to_measure_recall(tuned, monkeypatch):
    view, _, index = tuned
    searches = sys.modules["chiasm.index.query.search"]
    same = ArrayView()
    same.stored = np.repeat(view.stored[:4], ROWS // 4, axis=0)
    column = TunedColumn(Plan("ivf", 4, 1, "full", DIM, "SQ8"), index.trained)
    column = replace(column, trained=train(column.plan, same.stored.astype(np.float32)))
    equal, xq = built(same, column), same.stored[:1].astype(np.float32)
    queries = Queries.of(xq)
    exact, _ = exact_top([(0, same.stored)], xq, 10)
    _, lowest = search(equal, xq, 10, 4)
    assert lowest[0].tolist() == list(range(10)), "of equal rows the first"
    monkeypatch.setattr(searches, "_search_uncut", pytest.fail)
    assert recalls(equal, Case(queries, exact), 10, 4).tolist() == [1.0]


def test_an_exact_index_is_taken_where_no_other_reaches_the_recall(tuned, monkeypatch):
    view, _, _ = tuned

    def run(trials: Trials, plan: Plan) -> Trial:
        return Trial(plan, SimpleNamespace(plan=str(plan), reached=False), 0.5)

    monkeypatch.setattr(Trials, "run", run)
    column = tune_column(view, MEASURED)
    assert column.plan.exact and column.trained is None
    segment: Any = SampleSegment(Float16Vectors(view.stored), SimpleNamespace(code_size=0))
    index = Unmapped([segment], SAMPLE, column.plan, None)
    report = fit_column(column, index, MEASURED, 0).report
    assert report.measured.plan == "exact" and set(report.promise.values()) == {1.0}
    assert report.measured.recall["text"] == {1: 1.0, 10: 1.0, 100: 1.0}
    with pytest.raises(ChiasmError, match=r"found 0.500 at the most, by projected .*give up the r"):
        tune_column(view, replace(MEASURED, kind="projected"))
    with pytest.raises(ChiasmError, match=r"0.9 within 100 KB, .*give up the limit of memory"):
        tune_column(view, replace(MEASURED, memory_gb=1e-4))


def test_a_kind_and_dimensions_that_are_wanted_are_what_is_tried(tuned):
    _view, _, _ = tuned
    space = PlanSpace(ROWS, DIM, replace(MEASURED, kind="projected", dims=8))
    assert {(plan.family, plan.dims) for plan in space.first()} == {("projected", 8)}
    near = [
        plan
        for ladder in space.ladders()
        for step in (-1, 1)
        if (plan := space.neighbour(space.first()[0], *ladder, step))
    ]
    assert {plan.dims for plan in near} == {8} and len({plan.lists for plan in near}) == 3
    (only,) = PlanSpace(ROWS, DIM, replace(MEASURED, kind="ivf")).first()
    assert (only.family, only.dims, only.space) == ("ivf", DIM, "full")


def test_smaller_codes_where_the_memory_is_scarce():
    rows, dim = 1_000_000, 256
    free = PlanSpace(rows, dim, IndexSettings(kind="ivf"))
    (fast,) = free.first()
    assert fast.codes == "SQ8"
    limit = plan_bytes(fast, rows, dim) / 2e9
    tight = replace(free, settings=IndexSettings(kind="ivf", memory_gb=limit))
    (small,) = tight.first()
    assert small.codes == "RaBitQ4" and tight.fits(small) and not tight.fits(fast)
    assert tight.least_bytes() < limit * 1e9
    assert not replace(free, settings=IndexSettings(memory_gb=1e-9)).first()


@pytest.mark.parametrize("codes", ["SQ8", "RaBitQ4", "RaBitQ1"])
@pytest.mark.parametrize("spread", [0.0, 1.5])
def test_trained_lists_find_what_brute_force_finds(codes, spread):
    view = ArrayView()
    plan = Plan("projected", 40, 40, "projected", 8, codes, spread, 16)
    trained = train(plan, view.sample(2000), view.sets.learn)
    assert (trained.list_bias > 0).any() == bool(spread)
    index = built(view, TunedColumn(plan, trained))
    queries = view.sets.tune["text"]
    case = Case(queries, exact_top([(0, view.stored)], queries.vectors, 10)[0])
    assert recalls(index, case, 10, 40).mean() > (0.95 if codes != "RaBitQ1" else 0.7)


def test_a_trial_on_a_part_of_the_rows_finds_the_lists_that_all_of_them_need():
    view = ArrayView()
    rows = view.sample(ROWS)
    trials = Trials(rows[:600], rows[600:], view.sets, ROWS, MEASURED)
    assert (trials.at, trials.candidates(Plan(oversample=4))) == (3, 14)
    plan = Plan("projected", 100, 0, "projected", 8, "SQ8", 1.5, 4)
    trial = trials.run(plan)
    assert trial.measured.reached and trials.tried[0].made is None
    trained = train(plan, rows[600:], view.sets.learn, projection=trials.projection)
    index = built(view, TunedColumn(plan, trained))
    queries = view.sets.report["text"]
    case = Case(queries, exact_top([(0, view.stored)], queries.vectors, 10)[0])
    found = recalls(index, case, 10, trial.plan.nprobe).mean()
    assert MEASURED.recall - 0.03 <= found <= MEASURED.recall + 0.05


def test_a_trial_says_by_codes_what_no_number_of_lists_can_find():
    view = ArrayView()
    rows = view.sample(ROWS)
    trials = Trials(rows, rows, view.sets, ROWS, replace(MEASURED, recall=0.99))
    trial = trials.run(Plan("projected", 100, 0, "projected", 2, "SQ8", 0.0, 1))
    assert not trial.measured.reached and trial.recall < 0.95
    better = trials.run(Plan("projected", 100, 0, "projected", 8, "SQ8", 0.0, 4))
    assert trials.cheaper(better, trial) and not trials.cheaper(trial, better)


def test_lists_begin_at_the_means_of_others():
    rng = np.random.default_rng(0)
    x, lists = rng.normal(size=(50, 3)).astype(np.float32), rng.integers(0, 4, 50)
    lists[lists == 2] = 3
    others = np.ones((4, 3), np.float32)
    found = means(x, lists, others)
    for number in (0, 1, 3):
        np.testing.assert_allclose(found[number], x[lists == number].mean(axis=0), rtol=1e-5)
    assert np.array_equal(found[2], others[2])


def test_a_filter_of_a_build_is_prepared_once():
    view = ArrayView()
    plan = Plan("ivf", 20, 5, "full", DIM, "SQ8")
    index = built(view, TunedColumn(plan, train(plan, view.sample(ROWS))))
    allowed = random_filter([len(segment) for segment in index.segments], seed=0)
    assert index.scan(allowed).memory[0] is index.scan(allowed).memory[0]


def test_a_filter_that_another_plan_has_prepared_is_searched_by_the_plan_that_searches():
    view = ArrayView()
    plan = Plan("ivf", 20, 1, "full", DIM, "SQ8", oversample=4, missed=1.0)
    index = built(view, TunedColumn(plan, train(plan, view.sample(ROWS))))
    allowed = random_filter([len(segment) for segment in index.segments], seed=0)
    xq = view.sets.report["text"].vectors
    exact, _ = exact_top([(0, view.stored[np.concatenate(allowed)])], xq, 10)

    def recall(missed: float, shared: ColumnIndex) -> float:
        one = replace(shared, plan=replace(plan, missed=missed))
        return recall_of(search_lists(one, xq, 10, 1, allowed)[0], exact, 10).mean()

    few, many = recall(1.0, index), recall(1e-4, index)  # the second with what the first prepared
    fresh = built(view, TunedColumn(plan, index.trained))
    assert many == recall(1e-4, fresh) > few == recall(1.0, fresh)


def test_pages_of_a_mapped_file_that_were_let_go_are_read_again(tmp_path):
    stored = np.arange(5000, dtype=np.float16).reshape(-1, 10)
    stored.tofile(tmp_path / "x")
    mapped = np.memmap(tmp_path / "x", np.float16, "r", shape=stored.shape).view(np.ndarray)
    for array in (mapped, mapped[7:], stored):
        release_pages(array)
        assert np.array_equal(mapped, stored)
    release_memory()


def test_deviations_of_lists_are_those_of_scores_within_them():
    view = ArrayView()
    rows, xq = view.sample(ROWS), view.sets.learn
    trained = train(Plan("ivf", 5, 1, "full", DIM, "SQ8"), rows)
    lists = trained.assign(rows, rows)
    moment = xq.T.astype(float) @ xq / len(xq)
    found = list_deviations(trained, rows, rows, moment)
    for number in range(5):
        members = rows[lists == number]
        scores = xq @ (members - trained.centroids[number]).T
        assert found[number] == pytest.approx(np.sqrt((scores**2).mean()), rel=1e-3)


def test_unseen_rows_fit_the_ranges_of_codes():
    view = ArrayView()
    trained = train(Plan("ivf", 8, 1, "full", DIM, "SQ8"), view.sample(1000))
    low, width = trained.ranges
    x = view.stored.astype(np.float32)
    assert ((x < low) | (x > low + width)).mean() < 1e-3


def test_few_rows_are_exact_and_nothing_is_measured():
    view = ArrayView()
    view.query_sets = None  # not called
    assert tune_column(view, IndexSettings()) == TunedColumn(Plan())
    plain = tune_column(view, IndexSettings(exact_below=1, tune=False))
    assert plain.plan.family == "ivf" and plain.sets is None and plain.trained is not None
    assert fit_column(plain, None, IndexSettings(), 0) is plain
    view.query_sets = lambda: view.sets
    projected = IndexSettings(exact_below=1, tune=False, kind="projected", dims=8)
    made = tune_column(view, projected)
    assert str(made.plan) == f"projected {lists_for(ROWS)} x SQ8, 8 dimensions"
    assert made.trained.project_rows.shape == (DIM, 8)
    with pytest.raises(ChiasmError, match=r"of 128 KB or more for 2,000 rows.*--memory 128KB"):
        tune_column(view, IndexSettings(memory_gb=1e-6))
    assert tune_column(view, IndexSettings(memory_gb=128e-6)).plan.exact


def test_the_least_number_of_lists_is_found():
    called: list[int] = []

    def recall_at(nprobe: int) -> float:
        called.append(nprobe)
        return nprobe / 1000

    assert least_nprobe(recall_at, 0.016, 8, 512) == 16
    assert len(called) <= 7 and len(set(called)) == len(called)
    for wanted, guess in ((0.1, 1), (0.1, 512), (0.3, 77)):
        assert wanted <= least_nprobe(recall_at, wanted, guess, 512) / 1000 <= wanted * 1.0626
    assert least_nprobe(recall_at, 0.001, 512, 512) == 1
    assert least_nprobe(recall_at, 0.6, 4, 512) is None


def test_a_file_of_queries_that_cannot_be_used_is_one_line(tmp_path):
    file = tmp_path / "queries.txt"
    with pytest.raises(UsageError, match=r"--queries .*: expected a text file of queries, .*found"):
        query_lines(str(file))
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="found bytes that are no UTF-8"):
        query_lines(str(file))
    file.write_text("one\n\n two \none\n")
    with pytest.raises(UsageError, match=r"expected 300 different queries or more.*found 2$"):
        query_lines(str(file))
    file.write_text("\n".join(f"query {number}" for number in range(300)))
    assert query_lines(str(file))[299] == "query 299"


def test_no_more_lists_are_tried_than_rows_to_train_with_fit_the_memory():
    space = PlanSpace(1_000_000, 256, MEASURED, 1500)
    plans = [space.first()[0], space.neighbour(space.first()[0], *space.ladders()[2], -1)]
    assert [plan.lists for plan in plans] == [1500, 750]
    assert space.neighbour(plans[0], *space.ladders()[2], 1) is None
    view = ArrayView()
    plain = IndexSettings(exact_below=1, tune=False, kind="projected", dims=8)
    view.dim, view.rows = DIM, 10**9  # more rows than the memory has room for
    sampled: list[int] = []
    view.sample = lambda wanted: sampled.append(wanted) or ArrayView.sample(view, ROWS)
    made = tune_column(view, replace(plain, build_memory_mb=1))
    assert sampled == [2**18 // (4 * DIM)] and made.plan.lists == sampled[0] // 39


def test_an_exact_index_of_8_bit_vectors_promises_what_was_measured(tuned):
    view, _, _ = tuned
    form = FORMS["int8"]
    plan = Plan(vectors="int8")
    segment: Any = SampleSegment(
        form.opened(form.stored(view.stored)), SimpleNamespace(code_size=0)
    )
    index = Unmapped([segment], SAMPLE, plan, None)
    exact, positions = exact_top([(0, view.stored)], view.sets.report["text"].vectors, 101)
    case = Case(view.sets.report["text"], exact, ranked=Ranked(exact, positions))
    report = _report(
        TunedColumn(plan, sets=view.sets), index, {"report": {"text": case}}, MEASURED, 0
    )
    assert report.measured.recall["text"][10] < 1 and report.promise["text"] < 0.99

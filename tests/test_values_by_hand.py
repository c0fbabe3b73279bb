"""Calibration, promises, query vectors, recent queries, rankings and samples by hand."""

from __future__ import annotations

import io
import math
import statistics
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
from matplotlib.figure import Figure
from scipy.optimize import minimize

from chiasm.index.build.plot import draw_reports
from chiasm.index.build.promise import promised_recall
from chiasm.index.build.sampled_rows import sampled_rows
from chiasm.index.query.calibrate import SHRINK, features, separating_weights
from chiasm.index.query.encode import _given, weighted_sum
from chiasm.index.query.keyword import search_keywords
from chiasm.index.query.recent_queries import KEPT, RecentQueries
from chiasm.index.query.search import _is_cut, best_k
from chiasm.index.segments import Keywords, KeywordWriter
from chiasm.pipeline.errors import UsageError


def test_features_of_a_query_are_those_counted_by_hand():
    terms = {"cat": 2.0, "dog": 3.0, "sea": 5.0, "cat dog": 7.0, "dog sea": 4.0}
    scores = np.array([0.9, 0.5, 0.25])
    found = features(scores, {"sea", "cat dog"}, terms)
    assert found.tolist() == [0.9, 0.25, 3.0, 4.0]
    assert features(scores, set(terms), terms).tolist() == [0.9, 0.25, 0, 0]
    none = features(scores[:0], set(), terms)
    assert none.tolist() == [-1.0, -1.0, 5.0, 7.0]


def test_separating_weights_have_the_least_penalised_log_loss():
    rng = np.random.default_rng(3)
    positive = rng.normal(0, 1, (60, 3)) * (1, 5, 0) + (1, 0, 4)
    negative = rng.normal(0, 1, (25, 3)) * (1, 5, 0) + (0, -4, 4)
    x = np.concatenate((positive, negative))
    z = (x[:, :2] - x[:, :2].mean(axis=0)) / x[:, :2].std(axis=0)

    def loss(w: np.ndarray) -> float:
        logits = z @ w[:2] + w[2]
        right, wrong = np.logaddexp(0, -logits[:60]), np.logaddexp(0, logits[60:])
        return float(right.mean() / 2 + wrong.mean() / 2 + SHRINK * (w[:2] ** 2).sum())

    best = minimize(loss, np.zeros(3), tol=1e-12).x[:2] / x[:, :2].std(axis=0)
    found = separating_weights(positive, negative)
    assert found[:2] == pytest.approx(best, rel=1e-3) and found[2] == 0


def test_a_promise_is_the_tolerance_limit_of_means_of_500():
    recalls = [1.0] * 70 + [0.5] * 20 + [float("nan")]
    sample = [*recalls[:-1], 0.0]
    width = 1.645 / math.sqrt(91) + 2.054 / math.sqrt(500)
    limit = statistics.mean(sample) - statistics.stdev(sample) * width
    assert promised_recall(np.array(recalls)) == pytest.approx(limit, abs=1e-12)


def test_a_vector_that_is_given_must_have_the_shape_and_be_a_direction():
    for bad in ([1.0, 2.0], [0.0] * 3, [1.0, np.nan, 0.0], [1.0, np.inf, 0.0], [[1.0, 2.0, 3.0]]):
        with pytest.raises(UsageError, match="query vector"):
            _given(np.array(bad), 3)
    assert _given(np.array([3.0, 0.0, 4.0]), 3) == pytest.approx([0.6, 0, 0.8])


def test_a_weighted_sum_has_length_one_whatever_the_size_of_the_weights():
    vectors = np.eye(3, dtype=np.float32)
    for size in (1e-30, 1.0, 1e30):
        found = weighted_sum(vectors, [3 * size, -4 * size, 0.0], "query")
        assert found == pytest.approx([0.6, -0.8, 0])
    with pytest.raises(UsageError, match="cancel"):
        weighted_sum(vectors[[0, 0]], [1.0, -1.0], "query")


def test_recent_queries_are_kept_with_the_search_that_answered_them():
    recent = RecentQueries(2)
    for start, count in ((0, 1), (1, 2), (3, 4)):
        numbers = np.arange(start, start + count, dtype=np.float32)
        recent.add(np.column_stack((numbers, -numbers)), "image", "text", 5 + start)
    for first in (0, 100):  # the second time: nothing is left of the first
        found = {
            (search.k, vector[0]): vector[1] for search, rows in recent.take(1.0) for vector in rows
        }
        ks = [5, 6, 6, 8, 8, 8, 8] if not first else [9]
        assert found == {(k, first + n): -(first + n) for n, k in enumerate(ks)}
        assert recent.seen == 0 and recent.take(1.0) == []
        recent.add(np.array([[100.0, -100.0]], np.float32), "image", "text", 9)


def test_a_full_reservoir_holds_different_queries_with_their_own_searches():
    recent = RecentQueries(1, seed=2)
    for start in range(0, 4 * KEPT, 96):
        recent.add(np.arange(start, start + 96, dtype=np.float32)[:, None], "image", "text", start)
    seen = recent.seen
    assert recent.is_full_of(KEPT / seen) and not recent.is_full_of((KEPT - 1) / seen)
    groups = recent.take(1.0)
    numbers = np.concatenate([rows[:, 0] for _, rows in groups])
    assert len(numbers) == len(set(numbers)) == KEPT
    assert all((rows[:, 0] // 96 * 96 == search.k).all() for search, rows in groups)
    quarters = np.bincount((numbers // KEPT).astype(int), minlength=4)[:4]
    assert (abs(quarters - KEPT / 4) < 5 * math.sqrt(KEPT * 3 / 16)).all()


def test_the_best_of_candidates_are_those_of_a_stable_sort_padded():
    scores = np.array([[0.5, 0.9, 0.5, -np.inf], [0.1, 0.2, 0.3, 0.3]], np.float32)
    positions = np.array([[2, 4, 7, -1], [1, 3, 5, 8]])
    found = best_k(scores, positions, 2)
    assert found[1].tolist() == [[4, 2], [5, 8]]
    assert found[0].tolist() == np.array([[0.9, 0.5], [0.3, 0.3]], np.float32).tolist()
    wide = best_k(scores, positions, 6)
    assert wide[1].tolist() == [[4, 2, 7, -1, -1, -1], [5, 8, 3, 1, -1, -1]]
    assert (wide[0][:, 4:] == -np.inf).all()


def test_a_query_is_cut_where_fewer_than_k_candidates_are_above_the_last():
    near = np.array([[0.9, 0.8, 0.5, 0.5], [0.9, 0.5, 0.5, 0.5], [0.9, 0.8, 0.7, -np.inf]])
    for k, expected in ((1, [0, 0, 0]), (2, [0, 1, 0]), (3, [1, 1, 0]), (9, [1, 1, 0])):
        assert _is_cut(near, k).tolist() == list(map(bool, expected))


def test_rows_found_by_words_have_their_own_positions_in_every_run_of_every_segment(tmp_path):
    segments = []
    for number in range(2):
        texts = [f"red{number}{row} sea" for row in range(6)]
        file = io.BytesIO()
        writer = KeywordWriter(cast(Any, file), 4)  # several runs
        for text in texts:
            writer.add_texts([text])
        writer.close()
        path = tmp_path / str(number)
        path.write_bytes(file.getvalue())
        with open(path, "rb") as content:
            segments.append(Keywords(content, "keywords", "build", 6))
    assert min(len(segment.runs) for segment in segments) > 1
    queries = [f"red{number}{row}" for number in range(2) for row in range(6)]
    allowed = [np.arange(6) != 4, None]
    _, positions = search_keywords(segments, queries, 2, [None, None], allowed)
    assert positions.tolist() == [[-1 if n == 4 else n, -1] for n in range(12)]


class _File:
    """Row groups of 4 rows, of which every fourth has no vector."""

    def __init__(self, number: int) -> None:
        self.first = 100 * number

    def group_count(self) -> int:
        return 3

    def groups(self, columns: list[str], numbers: list[int]) -> Any:
        for group in numbers:
            rows = self.first + 4 * group + np.arange(4)
            yield pa.table({"row": rows, "v": [None if r % 4 == 0 else float(r) for r in rows]})


@pytest.mark.parametrize(
    ("wanted", "found", "a_group"), [(18, 18, 3), (6, 6, 1), (7, 8, 2), (99, 18, 3)]
)
def test_sampled_rows_have_vectors_and_come_from_as_many_groups_as_give(wanted, found, a_group):
    covered = SimpleNamespace(
        files=[_File(0), _File(1)], replaced_errors=lambda file: nullcontext()
    )
    first_of_group = lambda rows: np.array(rows["row"]) % 4 == 1  # noqa: E731
    tables = sampled_rows(cast(Any, covered), "v", wanted, ["row", "v"], 0, first_of_group)
    rows = np.concatenate([np.array(table["row"]) for table in tables])
    assert len(rows) == len(set(rows)) == found and (rows % 4 > 0).all()
    assert max(map(len, tables)) == a_group
    assert all(table["row"][0].as_py() % 4 == 1 for table in tables)  # preferred


def test_a_report_is_drawn_with_its_candidates_and_its_curve(monkeypatch):
    drawn: list[Figure] = []

    def saved(figure: Figure, file: io.BytesIO, **_: Any) -> None:  # test_tune.py draws one
        drawn.append(figure)
        file.write(b"PNG")

    monkeypatch.setattr(Figure, "savefig", saved)
    point = lambda recall, speed: SimpleNamespace(recall=recall, queries_per_second=speed)  # noqa: E731
    candidate = lambda label, recall: SimpleNamespace(  # noqa: E731
        label=label, recall=recall, queries_per_second=50.0
    )
    report = SimpleNamespace(
        column="image", rows=1234, at=10, recall=0.9, curve=[point(0.5, 900.0), point(0.8, 300.0)],
        candidates=[candidate("a", {"text": {10: 0.75}}), candidate("b", {"text": {1: 0.5}})],
        measured=SimpleNamespace(recall={"text": {10: 0.8}}, plan="p"),
    )  # fmt: skip
    assert draw_reports(cast(Any, [report, report])) == b"PNG"
    (figure,) = drawn
    assert figure.get_size_inches().tolist() == [13.0, 4.8] and len(figure.axes) == 2
    for axes in figure.axes:
        lines = [np.array(line.get_xydata()).tolist() for line in axes.lines[:2]]
        assert lines == [[[0.75, 50.0]], [[0.5, 900.0], [0.8, 300.0]]]
        assert axes.get_legend_handles_labels()[1] == ["a", "built: p"]
        assert (
            np.array(axes.lines[2].get_xdata()).tolist() == [0.9, 0.9]
            and axes.get_yscale() == "log"
        )
        assert axes.get_legend() is not None and axes.get_title() == "image, 1,234 rows"

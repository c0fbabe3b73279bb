"""Exact answers and what counts as found, against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_collection import unit_rows

from chiasm.index.build.promise import promised_recall
from chiasm.index.query.truth import exact_top, recall_of, without_own


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 2**31),
    st.integers(0, 60),
    st.integers(1, 20),
    st.integers(1, 40),
    st.sampled_from([np.float16, np.float32]),
)
def test_exact_answers_over_blocks_are_brute_force(seed, rows, step, k, kind):
    rng = np.random.default_rng(seed)
    xb = rng.integers(-4, 5, (rows, 3)).astype(kind)  # sums are exact, ties are many
    xq = rng.integers(-4, 5, (5, 3)).astype(np.float32)
    blocks = ((start, xb[start : start + step]) for start in range(0, rows, step))
    scores, found = exact_top(blocks, xq, k)
    near = xq @ xb.astype(np.float32).T
    expected = -np.sort(-near, axis=1)[:, :k]
    have = min(k, rows)
    assert np.array_equal(scores[:, :have], expected)
    assert (scores[:, have:] == -np.inf).all() and (found[:, have:] == -1).all()
    assert np.array_equal(np.take_along_axis(near, found[:, :have], 1), expected)
    assert all(len(set(row[:have])) == have for row in found.tolist())


def test_many_queries_and_rows_are_answered_in_parts(monkeypatch):
    monkeypatch.setattr("chiasm.index.query.truth.ROWS_AT_ONCE", 7)
    monkeypatch.setattr("chiasm.index.query.truth.QUERIES_AT_ONCE", 3)
    rng = np.random.default_rng(0)
    xb, xq = unit_rows(rng, 50, 8), unit_rows(rng, 10, 8)
    scores, rows = exact_top([(100, xb)], xq, 4)
    order = np.argsort(-(xq @ xb.T), axis=1)[:, :4]
    assert np.array_equal(rows, order + 100)
    np.testing.assert_allclose(scores, np.take_along_axis(xq @ xb.T, order, 1), rtol=1e-6)


def test_a_hit_counts_by_its_score():
    exact = np.array([[0.9, 0.8, 0.7, 0.6]])

    def recall(found: list[float], k: int) -> float:
        return recall_of(np.array([found]), exact, k)[0]

    assert recall([0.9, 0.8, 0.7], 3) == 1
    assert recall([0.9, 0.7, 0.6], 3) == pytest.approx(2 / 3)
    assert recall([0.9, 0.8, 0.7 - 5e-7], 3) == 1, "equal but for rounding"
    assert recall([0.9, 0.8, 0.7 - 2e-6], 3) == pytest.approx(2 / 3)
    assert recall([0.8, 0.7, 0.6], 1) == 0
    assert recall([0.9, -np.inf, -np.inf], 3) == pytest.approx(1 / 3)


def test_fewer_rows_than_k_are_all_that_can_be_found():
    exact = np.array([[0.9, 0.8, -np.inf], [-np.inf] * 3])
    recalls = recall_of(np.array([[0.9, -np.inf, -np.inf]] * 2), exact, 3)
    assert recalls[0] == 0.5 and np.isnan(recalls[1])


def test_the_own_row_of_a_picture_counts_neither_way():
    scores = np.array([[1.0, 0.9, 0.8], [0.95, 0.9, 0.8], [1.0, 0.9, 0.8]], np.float32)
    own = np.array([1.0, 1.0, np.nan], np.float32)
    expected = np.array([[0.9, 0.8], [0.95, 0.9], [1.0, 0.9]], np.float32)
    assert np.array_equal(without_own(scores, own), expected)
    longer = np.array([[1.1, 1.0, 0.8]], np.float32)  # a row with a greater norm comes before it
    assert np.array_equal(without_own(longer, own[:1]), np.array([[1.1, 0.8]], np.float32))
    few = np.array([[1.0, -np.inf, -np.inf]], np.float32)
    assert np.array_equal(without_own(few, own[:1]), np.array([[-np.inf, -np.inf]], np.float32))


@pytest.mark.parametrize("mean", [0.95, 0.99, 1.0])
def test_a_promise_is_kept_by_almost_every_other_set_of_queries(mean):
    """A population of queries of which some find little; the promise comes from 1,000 of them."""
    rng = np.random.default_rng(1)
    kept, gaps = [], []
    for _ in range(40):
        few = rng.binomial(10, 0.75, 4000) / 10
        population = np.where(rng.random(4000) < 4 * (1 - mean), few, 1.0)
        promise = promised_recall(rng.choice(population, 1000))
        sets = rng.choice(population, (200, 500)).mean(axis=1)
        kept.append((sets >= promise).mean())
        gaps.append(population.mean() - promise)
    assert np.mean(kept) >= 0.98 and np.quantile(kept, 0.1) >= 0.97
    assert np.mean(gaps) <= 0.02


def test_few_queries_promise_little_and_none_nothing():
    assert promised_recall(np.array([])) == promised_recall(np.array([np.nan])) == 0
    assert promised_recall(np.ones(10)) < promised_recall(np.ones(1000)) < 1
    assert promised_recall(np.ones(1000)) > 0.99

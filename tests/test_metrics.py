"""Metrics against their definitions spelled out, and the plan for an index of any size."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from overlap import overlap_at

from chiasm.index.plan import MAX_LISTS, MIN_PER_LIST, IndexSettings, Plan, default_plan
from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.metrics import (
    mean_reciprocal_of_ranks,
    mean_reciprocal_rank,
    ranks_of,
    recall_at,
    recalls,
    recalls_of_ranks,
    reordered,
    right_at,
    signs_right,
    top_k,
)

rankings = st.integers(1, 6).flatmap(
    lambda k: st.lists(st.lists(st.booleans(), min_size=k, max_size=k), min_size=1, max_size=8)
)


@settings(deadline=None, max_examples=60)
@given(rankings, st.integers(1, 8))
def test_recall_counts_queries_with_a_right_one_in_time(right, k):
    counted = sum(True in ranking[:k] for ranking in right) / len(right)
    assert recall_at(np.array(right), k) == pytest.approx(counted)


@settings(deadline=None, max_examples=60)
@given(rankings)
def test_recall_grows_with_k_and_bounds_the_reciprocal_rank(right):
    right = np.array(right)
    recalls = [recall_at(right, k) for k in range(1, right.shape[1] + 1)]
    assert recalls == sorted(recalls)
    assert recalls[0] <= mean_reciprocal_rank(right) <= recalls[-1]


@settings(deadline=None, max_examples=60)
@given(rankings)
def test_the_reciprocal_rank_is_that_of_the_first_right_one(right):
    reciprocal = [1 / (ranking.index(True) + 1) if True in ranking else 0 for ranking in right]
    assert mean_reciprocal_rank(np.array(right)) == pytest.approx(sum(reciprocal) / len(reciprocal))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.permutations(range(6)), min_size=1, max_size=5), st.integers(1, 6), st.data())
def test_overlap_is_the_share_of_the_truth_that_was_found(truth, k, data):
    found = data.draw(st.lists(st.permutations(range(6)), min_size=len(truth), max_size=len(truth)))
    shared = [len(set(a[:k]) & set(b[:k])) / k for a, b in zip(found, truth, strict=True)]
    assert overlap_at(np.array(found), np.array(truth), k) == pytest.approx(np.mean(shared))
    assert overlap_at(np.array(truth), np.array(truth), k) == 1


def test_places_that_stayed_empty_count_nowhere():
    assert overlap_at(np.array([[3, -1, -1]]), np.array([[3, 4, -1]]), 3) == 0.5
    assert math.isnan(overlap_at(np.array([[-1]]), np.array([[-1]]), 1))


def test_nothing_asked_is_no_number_and_nonsense_is_refused():
    assert math.isnan(recall_at(np.empty((0, 5)), 1))
    assert math.isnan(mean_reciprocal_rank(np.empty((0, 5))))
    assert mean_reciprocal_rank(np.empty((2, 0))) == 0
    with pytest.raises(ValueError, match=r"found an array of shape \(3,\)"):
        recall_at(np.ones(3), 1)
    with pytest.raises(ValueError, match="k from 1 up, found 0"):
        recall_at(np.ones((3, 1)), 0)
    with pytest.raises(ValueError, match="as many rows as truth has"):
        overlap_at(np.ones((3, 1)), np.ones((2, 1)), 1)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**10))
def test_every_size_gets_an_index_that_can_be_trained(rows):
    made = default_plan(rows, 64, IndexSettings())
    if rows < 10_000:
        assert made == Plan() and made.exact and str(made) == "exact"
        return
    assert str(made) == f"ivf {made.lists} x SQ8" and not made.exact and made.dims == 64
    assert made.lists.bit_count() == 1 and made.lists <= MAX_LISTS
    assert MIN_PER_LIST * made.lists <= made.train_rows <= rows
    assert 1 <= made.nprobe <= made.lists


def test_settings_bend_the_plan():
    small = IndexSettings(exact_below=100)
    expected = Plan("ivf", 8, 8, dims=64, codes="SQ8", oversample=4, train_rows=500)
    assert default_plan(500, 64, small) == expected
    assert default_plan(500, 64, IndexSettings(exact_below=100, nprobe=3)).nprobe == 3
    assert default_plan(500, 64, IndexSettings(exact_below=100, nprobe=99)).nprobe == 8
    assert default_plan(500, 64, IndexSettings(kind="ivf")) == expected
    assert default_plan(50_000, 64, IndexSettings(kind="exact")).exact
    few = default_plan(20, 64, IndexSettings(exact_below=0))
    assert few.exact, "too few to learn one centroid from"
    with pytest.raises(UsageError, match=r"^index.segment_rows: expected 1 or more, found 0$"):
        IndexSettings(segment_rows=0)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.integers(1, 8), st.integers(1, 12))
def test_ranks_and_recall_of_one_right_item_are_brute_force(seed, queries, items):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 5, (queries, items)).astype(np.float32)  # ties on purpose
    own = rng.integers(0, items, queries)
    ranks = ranks_of(scores, own)
    for row, column, rank in zip(scores, own, ranks, strict=True):
        assert rank == sum(score >= row[column] for score in row) - 1
    assert recalls_of_ranks(ranks) == {f"r{k}": np.mean(ranks < k) for k in (1, 5, 10)}
    assert mean_reciprocal_of_ranks(ranks) == pytest.approx(np.mean([1 / (1 + r) for r in ranks]))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.integers(1, 8), st.integers(1, 12))
def test_ranks_and_rankings_agree_where_no_scores_are_equal(seed, queries, items):
    rng = np.random.default_rng(seed)
    scores = rng.permuted(np.tile(np.arange(items, dtype=np.float32), (queries, 1)), axis=1)
    own = rng.integers(0, items, queries)
    relevant = np.arange(items) == own[:, None]
    right = right_at(top_k(scores, 10), relevant)
    ranks = ranks_of(scores, own)
    assert recalls(right) == recalls_of_ranks(ranks)
    if items <= 10:
        assert mean_reciprocal_rank(right) == pytest.approx(mean_reciprocal_of_ranks(ranks))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.integers(1, 8), st.integers(2, 12))
def test_what_is_not_a_number_is_last(seed, queries, items):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(queries, items))
    scores[rng.random(scores.shape) < 0.4] = np.nan
    own = rng.integers(0, items, queries)
    for row, column, rank in zip(scores, own, ranks_of(scores, own), strict=True):
        numbers = [score for score in row if score == score]
        wanted = items - 1 if np.isnan(row[column]) else sum(x > row[column] for x in numbers)
        assert rank == wanted
    for row, columns in zip(scores, top_k(scores, items), strict=True):
        order = sorted(np.flatnonzero(~np.isnan(row)), key=lambda i: -row[i])
        assert columns.tolist() == order + [-1] * (items - len(order))


def test_a_gallery_of_nan_finds_nothing():
    scores, own = np.full((50, 50), np.nan, np.float32), np.arange(50)
    assert recalls_of_ranks(ranks_of(scores, own))["r10"] == 0
    assert recalls(right_at(top_k(scores, 10), np.eye(50, dtype=bool)))["r10"] == 0
    assert math.isfinite(mean_reciprocal_of_ranks(ranks_of(scores, own)))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 8))
def test_reranked_by_new_scores_what_is_not_a_number_has_no_place(seed, queries, items):
    rng = np.random.default_rng(seed)
    order = rng.permuted(np.tile(np.arange(items), (queries, 1)), axis=1)
    order[rng.random(order.shape) < 0.3] = -1
    scores = rng.integers(0, 4, order.shape).astype(np.float32)  # ties on purpose
    scores[rng.random(order.shape) < 0.3] = np.nan
    for row, new, found in zip(order, scores, reordered(order, scores), strict=True):
        places = [i for i in range(items) if row[i] >= 0 and new[i] == new[i]]
        best = [row[i] for i in sorted(places, key=lambda i: -new[i])]
        assert found.tolist() == best + [-1] * (items - len(best))


def test_a_logit_that_is_not_a_number_is_wrong_of_either_pair():
    logits = np.array([[1.0, 0.0, -1.0, np.nan]] * 2)
    true = np.array([[True], [False]]).repeat(4, axis=1)
    assert signs_right(logits, true).tolist() == [
        [True, False, False, False], [False, True, True, False],
    ]  # fmt: skip


def test_short_lists_of_hits_and_empty_places_are_no_right_results():
    relevant = np.array([[True, False, True], [False, False, True]])
    assert right_at([[1, 0], [-1]], relevant).tolist() == [[False, True], [False, False]]
    assert right_at([[2, 1, 0], [0, 1, 2]], relevant, k=1).tolist() == [[True], [False]]
    assert math.isnan(recalls_of_ranks(np.empty(0, int))["r1"])
    assert math.isnan(mean_reciprocal_of_ranks(np.empty(0, int)))

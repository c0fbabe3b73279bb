"""Standard errors; two ways compared query by query: when one ships, and McNemar's test."""

from __future__ import annotations

from itertools import product
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chiasm.pipeline.metrics import mean_reciprocal_of_ranks
from chiasm.pipeline.training.paired import (
    cross_fitted,
    format_share,
    mcnemar,
    named_share,
    recalls_with_errors,
    share,
    wins_by_one_standard_error,
)


def test_errors_are_those_of_pictures():
    right, pictures = np.array([True, True, False, True]), np.array([0, 0, 1, 1])
    # Sums over pictures of what is above the mean: 0.5 and -0.5.
    assert share(right, pictures) == (0.75, pytest.approx(np.sqrt(0.5) / 4))
    assert named_share("r1", right, pictures) == {"r1": 0.75, "r1_error": 0.1768}
    assert format_share(0.75, 0.1768) == "0.750 (0.177)"
    assert all(np.isnan(share(np.zeros(0), np.zeros(0, dtype=np.int64))))


@given(st.integers(0, 2**31), st.integers(1, 40))
def test_of_one_query_a_picture_the_error_is_that_of_a_share(seed, count):
    right = np.random.default_rng(seed).random(count) < 0.4
    p = right.mean()
    assert share(right, np.arange(count)) == pytest.approx((p, np.sqrt(p * (1 - p) / count)))
    # Asked four times each, as sure as asked once.
    repeated = share(right.repeat(4), np.arange(count).repeat(4))
    assert repeated == pytest.approx(share(right, np.arange(count)))


def test_recalls_are_shares_of_ranks():
    ranks, pictures = np.array([0, 3, 12, 0, 9]), np.array([0, 0, 1, 2, 2])
    expected = {}
    for k in (1, 5, 10):
        expected |= named_share(f"r{k}", ranks < k, pictures)
    assert recalls_with_errors(ranks, pictures) == expected
    assert recalls_with_errors(ranks, pictures, (1,)) == {"r1": 0.4, "r1_error": 0.098}


def test_each_half_is_ranked_by_the_way_that_is_best_on_the_other():
    """Of two ways the first is right for pictures of even number, the second for those of odd."""
    pictures = np.repeat(np.arange(10), 3)
    even = pictures % 2 == 0
    ranks, ways = cross_fitted(np.stack([np.where(even, 0, 5), np.where(even, 5, 0)]), pictures)
    assert ways == (1, 0) and (ranks == 5).all()  # chosen on what it is measured on: 0
    rng = np.random.default_rng(0)
    many = rng.integers(0, 6, (4, 30))
    ranks, ways = cross_fitted(many, pictures)
    for half, way in enumerate(ways):
        other = pictures % 2 != half
        quality = [mean_reciprocal_of_ranks(row[other]) for row in many]
        assert quality[way] == max(quality)
        assert (ranks[~other] == many[way][~other]).all()


def test_a_fusion_has_to_win_by_more_than_chance():
    answers = lambda won, losses: (  # noqa: E731
        np.array([True] * won + [False] * losses + [True] * 50),
        np.array([False] * won + [True] * losses + [True] * 50),
        np.arange(won + losses + 50),
    )
    assert wins_by_one_standard_error(*answers(30, 10))
    assert not wins_by_one_standard_error(*answers(11, 10))
    assert not wins_by_one_standard_error(*answers(0, 0))
    assert not wins_by_one_standard_error(*answers(10, 30))


def test_queries_of_one_picture_are_not_so_many_wins():
    """Eight of twelve queries won: of as many pictures, or of three that go together."""
    ours = np.array([True] * 8 + [False] * 4)
    assert wins_by_one_standard_error(ours, ~ours, np.arange(12))
    assert not wins_by_one_standard_error(ours, ~ours, np.arange(12) // 4)


@pytest.mark.parametrize("won, losses", [*product(range(4), range(4)), (30, 12)])
def test_mcnemar_is_the_binomial_tail(won, losses):
    ours = np.array([True] * won + [False] * losses + [True] * 5 + [False] * 3)
    theirs = np.array([False] * won + [True] * losses + [True] * 5 + [False] * 3)
    n = won + losses
    tail = sum(comb(n, k) for k in range(won, n + 1)) / 2**n
    assert mcnemar(ours, theirs) == (won, losses, pytest.approx(tail, rel=1e-12))

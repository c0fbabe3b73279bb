"""Two ways compared query by query: when one ships, and McNemar's test."""

from __future__ import annotations

from itertools import product
from math import comb

import numpy as np
import pytest

from chiasm.pipeline.training.paired import mcnemar, wins_by_one_standard_error


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

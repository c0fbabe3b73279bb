"""What two towers weigh by: conditional logit, log odds, and when a fusion has won."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chiasm.pipeline.training.two_tower import closed_form as solving
from chiasm.pipeline.training.two_tower.select import wins_by_one_standard_error


def test_weights_are_where_the_slope_is_nothing_or_at_zero():
    """Of the conditional logit, by autograd; the third trait tells against what is chosen."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(300, 6, 3)))
    utility = (x @ torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)).numpy()
    chosen = (utility + rng.gumbel(size=utility.shape)).argmax(1)
    for row, place in enumerate(chosen):
        x[row, [0, place]] = x[row, [place, 0]]
    weights, slope = weights_and_slope(x, ridge=0.0)
    assert weights[2] == 0 and slope[2] > 0  # held at nothing: it would go below
    assert np.abs(slope[:2]).max() < 1e-6
    assert weights[1] > 1.5 * weights[0] > 0


@given(st.integers(0, 2**31), st.integers(2, 60), st.integers(2, 12), st.integers(1, 6))
def test_of_few_lists_the_weights_are_the_best_too(seed, lists, size, traits):
    """The conditions of Karush, Kuhn and Tucker, for traits that go together and lists that may be
    told apart without an error."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(lists, size, 1))
    x = common * rng.uniform(0.2, 1, traits) + rng.normal(size=(lists, size, traits))
    x[:, 0] += rng.uniform(-0.3, 1.5)
    ridge = 1e-3
    weights, slope = weights_and_slope(torch.from_numpy(x * rng.uniform(0.1, 10)), ridge)
    assert (weights >= 0).all()
    assert slope.min() > -1e-5  # none at nothing would rather rise
    assert np.abs(slope[weights > 0]).max(initial=0) < 1e-5


def test_what_is_the_same_for_all_of_a_list_weighs_nothing():
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(50, 6, 2)))
    x[:, 0, 0] += 1
    x[..., 1] = -3.2137
    weights = solving.first_of_list(x)
    assert weights[0] > 0.5 and weights[1] == 0


def weights_and_slope(x, ridge):
    """Weights of traits of unit spread, and the slope of the loss there by autograd."""
    spread = (x - x.mean(1, keepdim=True)).square().mean((0, 1)).sqrt()
    weights = (solving.first_of_list(x, ridge) * spread).requires_grad_()
    loss = ridge / 2 * weights.square().sum()
    loss = loss - (x / spread @ weights).log_softmax(1)[:, 0].mean()
    (slope,) = torch.autograd.grad(loss, weights)
    return weights.detach().numpy(), slope.numpy()


def test_log_odds_are_those_of_the_scores():
    """Of two normal distributions the log odds are a line that is known."""
    rng = np.random.default_rng(0)
    right, wrong = rng.normal(3, 2, 40000), rng.normal(-1, 2, 10000)
    scores = torch.from_numpy(np.concatenate([right, wrong]))
    bias, stretch = solving.logistic(scores, torch.arange(50000) < 40000)
    # log N(x; 3, 2) - log N(x; -1, 2) = ((x + 1)^2 - (x - 3)^2) / 8 = x - 1
    assert bias == pytest.approx(-1, abs=0.05) and stretch == pytest.approx(1, abs=0.05)


def test_a_fusion_has_to_win_by_more_than_chance():
    answers = lambda won, lost: (  # noqa: E731
        torch.tensor([True] * won + [False] * lost + [True] * 50),
        torch.tensor([False] * won + [True] * lost + [True] * 50),
        torch.arange(won + lost + 50),
    )
    assert wins_by_one_standard_error(*answers(30, 10))
    assert not wins_by_one_standard_error(*answers(11, 10))
    assert not wins_by_one_standard_error(*answers(0, 0))
    assert not wins_by_one_standard_error(*answers(10, 30))


def test_queries_of_one_picture_are_not_so_many_wins():
    """Eight of twelve queries won, four lost: of as many pictures, or of three that go together."""
    ours = torch.tensor([True] * 8 + [False] * 4)
    assert wins_by_one_standard_error(ours, ~ours, torch.arange(12))
    assert not wins_by_one_standard_error(ours, ~ours, torch.arange(12) // 4)

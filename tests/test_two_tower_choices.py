"""How match weights are fitted, by conditional logit and Platt scaling."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chiasm.pipeline.training.logit_fits import RIDGE_OF_SCALE, fit_conditional_logit, platt_scale


def test_weights_are_where_the_slope_is_nothing_or_at_zero():
    """Of the conditional logit, by autograd; the third feature speaks against what is chosen."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 6, 3))
    utility = x @ np.array([1.0, 2.0, -1.0])
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
    weights, slope = weights_and_slope(x * rng.uniform(0.1, 10), ridge)
    assert (weights >= 0).all()
    assert slope.min() > -1e-5  # none at nothing would rather rise
    assert np.abs(slope[weights > 0]).max(initial=0) < 1e-5


def test_what_is_the_same_for_all_of_a_list_weighs_nothing():
    x = np.random.default_rng(0).normal(size=(50, 6, 2))
    x[:, 0, 0] += 1
    x[..., 1] = -3.2137
    weights = fit_conditional_logit(x)
    assert weights[0] > 0.5 and weights[1] == 0


def weights_and_slope(x, ridge):
    """Weights of traits of unit spread, and the slope of the loss there by autograd."""
    x = torch.from_numpy(x)
    spread = (x - x.mean(1, keepdim=True)).square().mean((0, 1)).sqrt()
    found = torch.from_numpy(fit_conditional_logit(x.numpy(), ridge))
    weights = (found * spread).requires_grad_()
    loss = ridge / 2 * weights.square().sum()
    loss = loss - (x / spread @ weights).log_softmax(1)[:, 0].mean()
    (slope,) = torch.autograd.grad(loss, weights)
    return weights.detach().numpy(), slope.numpy()


def test_log_odds_are_those_of_the_scores():
    """Of two normal distributions the log odds are a line that is known."""
    rng = np.random.default_rng(0)
    right, wrong = rng.normal(3, 2, 40000), rng.normal(-1, 2, 10000)
    scores = np.concatenate([right, wrong])
    bias, stretch = platt_scale(scores, np.arange(50000) < 40000)
    # log N(x; 3, 2) - log N(x; -1, 2) = ((x + 1)^2 - (x - 3)^2) / 8 = x - 1
    assert bias == pytest.approx(-1, abs=0.05) and stretch == pytest.approx(1, abs=0.05)


@given(st.integers(0, 2**31), st.integers(4, 30), st.booleans())
def test_platt_scaling_is_at_the_minimum_of_its_loss(seed, size, separable):
    """No step of a grid around it has a lower loss, on separable scores, too."""
    rng = np.random.default_rng(seed)
    true = np.arange(size) < size // 2
    scores = rng.normal(0, 3, size) + np.where(true, 20 if separable else 1, 0)
    bias, scale = platt_scale(scores, true)
    assert np.isfinite([bias, scale]).all()

    def loss(b, s):
        odds = np.where(true, 1, -1) * (b + s * scores)
        sides = [np.logaddexp(0, -odds[side]).mean() for side in (true, ~true)]
        return np.mean(sides) + RIDGE_OF_SCALE / 2 * (s * scores.std(ddof=1)) ** 2

    best = loss(bias, scale)
    for b, s in itertools.product((-1e-3, 0, 1e-3), repeat=2):
        assert loss(bias + b, scale + s) >= best - 1e-12

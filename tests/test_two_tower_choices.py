"""What two towers weigh by: conditional logit, log odds, and when a fusion has won."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.two_tower import solve as solving
from pipeline.two_tower.judge import better


def test_weights_are_where_the_slope_is_nothing_or_at_zero():
    """Of the conditional logit, by autograd; the third trait tells against what is chosen."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(300, 6, 3)))
    utility = (x @ torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)).numpy()
    chosen = (utility + rng.gumbel(size=utility.shape)).argmax(1)
    for row, place in enumerate(chosen):
        x[row, [0, place]] = x[row, [place, 0]]
    weights = solving.first_of_list(x, ridge=0.0).requires_grad_()
    loss = -(x @ weights).log_softmax(1)[:, 0].mean()
    (slope,) = torch.autograd.grad(loss, weights)
    assert weights[2] == 0 and slope[2] > 0  # held at nothing: it would go below
    assert slope[:2].abs().max() < 1e-9
    assert weights[1] > 1.5 * weights[0] > 0


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
    )
    assert better(*answers(30, 10))
    assert not better(*answers(11, 10))
    assert not better(*answers(0, 0))
    assert not better(*answers(10, 30))

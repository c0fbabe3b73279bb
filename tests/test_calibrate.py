"""Calibration of matching, and the bias that it fits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from chiasm.pipeline.scenes.unseen import withheld_in
from chiasm.pipeline.training.logit_fits import fit_bias
from chiasm.pipeline.training.pocket.calibrate import calibration_bias, calibration_pairs


def test_logits_with_an_added_error_are_corrected():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, 60000)
    true = rng.random(60000) < 1 / (1 + np.exp(-logits))
    for mistake in (-7.0, 0.0, 0.5, 20.0):
        assert fit_bias(logits + mistake, true) == pytest.approx(-mistake, abs=0.05)


def test_the_gradient_of_the_log_loss_is_zero_at_the_bias():
    logits = torch.tensor([3.0, 1.0, -2.0, 4.0, -9.0], dtype=torch.float64)
    true = torch.tensor([True, False, False, True, False])
    moved = torch.tensor(
        fit_bias(logits.numpy(), true.numpy()), dtype=torch.float64, requires_grad=True
    )
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits + moved, true.double())
    (slope,) = torch.autograd.grad(loss, moved)
    assert abs(float(slope)) < 1e-8


@given(st.integers(0, 2**31), st.integers(2, 40), st.floats(0.01, 50))
def test_the_bias_makes_the_mean_probability_the_share_of_true_ones(seed, size, spread):
    rng = np.random.default_rng(seed)
    logits, true = rng.normal(0, spread, size), rng.random(size) < 0.4
    true[:2] = True, False
    logits[: size // 2] = logits[0]  # ties
    bias = fit_bias(logits, true)
    assert expit(logits + bias).mean() == pytest.approx(true.mean(), abs=1e-9)


def test_equal_logits_get_the_log_odds_of_the_share():
    assert fit_bias(np.full(4, 7.0), np.array([True, False, False, False])) == pytest.approx(
        -np.log(3) - 7
    )


def test_pairs_are_right_and_one_change_away():
    scenes, texts, true = calibration_pairs(40, 7)
    assert len(scenes) == len(texts) == len(true) == 80 and true.sum() == 40
    for right, wrong in zip(scenes[0::2], scenes[1::2], strict=True):
        assert not withheld_in(right)
        assert right.facts != wrong.facts
        assert abs(len(right.things) - len(wrong.things)) <= 1
    assert texts[0::2] == texts[1::2]
    again, other = calibration_pairs(40, 7)[1], calibration_pairs(40, 8)[1]
    assert again == texts != other


def test_logits_that_are_too_high_are_lowered():
    """A matcher that knows the truth but says yes to all is right half of the time, then always."""
    scenes, _, true = calibration_pairs(30, 3)
    known = {id(scene): right for scene, right in zip(scenes, true, strict=True)}
    kind = [5.0 + (2.0 if known[id(scene)] else -2.0) for scene in scenes]
    moved = calibration_bias(
        lambda pixels, texts, pairs: np.array(kind, np.float32), lambda s: s, 30, 3
    )
    assert ((np.array(kind) + moved > 0) == true).all()
    assert moved == pytest.approx(-5, abs=1e-3)

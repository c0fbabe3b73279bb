"""Where matching says yes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from chiasm.pipeline.scenes.unseen import withheld_in
from chiasm.pipeline.training.pocket.calibrate import fit_bias, nearly_right, shift


def test_log_odds_moved_by_mistake_are_moved_back():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, 60000)
    true = torch.from_numpy(rng.random(60000) < 1 / (1 + np.exp(-logits)))
    for mistake in (-7.0, 0.0, 0.5, 20.0):
        assert shift(torch.from_numpy(logits + mistake), true) == pytest.approx(-mistake, abs=0.05)


def test_the_slope_is_nothing_where_it_ends():
    logits = torch.tensor([3.0, 1.0, -2.0, 4.0, -9.0], dtype=torch.float64)
    true = torch.tensor([True, False, False, True, False])
    moved = torch.tensor(shift(logits, true), dtype=torch.float64, requires_grad=True)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits + moved, true.double())
    (slope,) = torch.autograd.grad(loss, moved)
    assert abs(float(slope)) < 1e-8


def test_pairs_are_right_and_one_change_away():
    scenes, texts, true = nearly_right(40, 7)
    assert len(scenes) == len(texts) == len(true) == 80 and true.sum() == 40
    for right, wrong in zip(scenes[0::2], scenes[1::2], strict=True):
        assert not withheld_in(right)
        assert right.facts != wrong.facts
        assert abs(len(right.things) - len(wrong.things)) <= 1
    assert texts[0::2] == texts[1::2]
    again, other = nearly_right(40, 7)[1], nearly_right(40, 8)[1]
    assert again == texts != other


def test_a_judge_who_is_too_kind_is_made_just():
    """One that knows the truth but says yes to all: half of its answers are right, then all."""
    scenes, _, true = nearly_right(30, 3)
    known = {id(scene): right for scene, right in zip(scenes, true, strict=True)}
    kind = [5.0 + (2.0 if known[id(scene)] else -2.0) for scene in scenes]
    moved = fit_bias(lambda pixels, texts, pairs: np.array(kind, np.float32), lambda s: s, 30, 3)
    assert ((np.array(kind) + moved > 0) == true).all()
    assert moved == pytest.approx(-5, abs=1e-3)

"""What a tower made of the last call's arrays is not made again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from chiasm.pipeline.encoders import recent
from chiasm.pipeline.encoders.recent import Recent


@pytest.fixture
def made():
    """A maker, and the sizes of the blocks it was asked for."""
    sizes = []

    def make(arrays):
        sizes.append(len(arrays))
        x = torch.from_numpy(np.stack(arrays))
        return x + 1, x.sum(1)

    return Recent(make, at_once=3), sizes


def arrays(count):
    rng = np.random.default_rng(0)
    return [rng.normal(size=4) for _ in range(count)]


def agree(told, expected):
    x = torch.from_numpy(np.stack(expected))
    return torch.equal(told[0], x + 1) and torch.equal(told[1], x.sum(1))


def test_the_same_arrays_in_any_order_and_number_are_made_once(made):
    seen, sizes = made
    given = arrays(7)
    assert agree(seen(given), given) and sizes == [3, 3, 1]
    mixed = [given[5], given[0], given[5], given[2]]
    assert agree(seen(mixed), mixed) and sizes == [3, 3, 1]
    new = arrays(1)[0]
    assert agree(seen([given[0], new]), [given[0], new]) and sizes == [3, 3, 1, 1]


def test_only_the_last_call_is_remembered(made):
    seen, sizes = made
    one, other = arrays(2)
    seen([one])
    seen([other])
    assert agree(seen([one]), [one]) and sizes == [1, 1, 1]


def test_an_equal_array_that_is_another_object_is_made_anew(made):
    seen, sizes = made
    (one,) = arrays(1)
    seen([one])
    seen([one.copy()])
    assert sizes == [1, 1]


def test_a_call_too_large_to_be_a_batch_is_not_remembered(made, monkeypatch):
    monkeypatch.setattr(recent, "MOST", 2)
    seen, sizes = made
    given = arrays(3)
    assert agree(seen(given), given) and agree(seen(given), given)
    assert sizes == [3, 3]

"""Ridge from normal equations, against the books in float64."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chiasm.pipeline.training.two_tower import ridge as module
from chiasm.pipeline.training.two_tower.ridge import JITTER, Ridge

CPU = torch.device("cpu")


def by_the_books(x, y, penalty):
    x, y, penalty = x.double(), y.double(), penalty.double()
    gram = x.T @ x + penalty
    gram += JITTER * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    return torch.linalg.inv(gram) @ x.T @ (y - y.mean(0))


@given(
    st.integers(0, 2**31),
    st.lists(st.integers(0, 2), min_size=2, max_size=9),
    st.sampled_from([1, 2, 5, 512]),
)
def test_it_is_that_of_the_books_in_any_blocks_and_without_any_part(seed, parts, chunk):
    with mock.patch.object(module, "CHUNK", chunk):
        is_that_of_the_books(seed, parts)


def is_that_of_the_books(seed, parts):
    torch.manual_seed(seed)
    blocks = [(torch.randn(7, 5) + 1, torch.randn(7, 3) - 2, part) for part in parts]
    penalty = 2.0 * torch.eye(5)
    ridge = Ridge(5, 3, folds=3, device=CPU)
    for x, y, part in blocks:
        ridge.add(x, y, part)
    for without in {None, *parts}:
        kept = [(x, y) for x, y, part in blocks if part != without]
        if not kept:
            with pytest.raises(ValueError, match="found none"):
                ridge.solve(penalty, without)
            continue
        x, y = (torch.cat(each) for each in zip(*kept, strict=True))
        ours = ridge.solve(penalty, without).double()
        assert torch.allclose(ours, by_the_books(x, y, penalty), atol=1e-6)


def test_landmarks_that_are_the_same_foretell_together_what_one_of_them_would():
    """Ten of forty landmarks, four times each: singular but for the jitter."""
    torch.manual_seed(0)
    unit = lambda rows: torch.nn.functional.normalize(rows, dim=-1)  # noqa: E731
    few = unit(torch.randn(10, 4))
    x, y = unit(torch.randn(20_000, 4)), torch.randn(20_000, 2) * 0.1
    foretold = []
    for landmarks in (few, few.repeat(4, 1)):
        kernel = lambda rows, z=landmarks: torch.exp(2 * (rows @ z.T - 1))  # noqa: E731
        ridge = Ridge(len(landmarks), 2, folds=1, device=CPU)
        for block, targets in zip(x.split(500), (y + x[:, :2]).split(500), strict=True):
            ridge.add(kernel(block), targets)
        foretold.append(kernel(x[:100]) @ ridge.solve(kernel(landmarks)))
    assert foretold[0].abs().max() > 0.5
    assert torch.allclose(*foretold, atol=2e-3)


@pytest.mark.parametrize("apart", [0.0, 1e-4, 1e-2])
def test_thousands_of_rows_much_alike_are_no_harm(apart):
    """As texts of a model that knows little: all likenesses close to one."""
    torch.manual_seed(0)
    rows = torch.nn.functional.normalize(torch.ones(3000, 32) + apart * torch.randn(3000, 32))
    landmarks = rows[::4]
    kernel = lambda some: torch.exp(2 * (some @ landmarks.T - 1))  # noqa: E731
    y = torch.randn(3000, 2)
    ridge = Ridge(len(landmarks), 2, folds=1, device=CPU)
    ridge.add(kernel(rows), y)
    foretold = kernel(rows) @ ridge.solve(kernel(landmarks))
    assert foretold.isfinite().all()
    assert (y - y.mean(0) - foretold).square().mean() <= y.var(correction=0)


def test_no_features_foretell_nothing():
    ridge = Ridge(0, 3, folds=1, device=CPU)
    ridge.add(torch.zeros(4, 0), torch.randn(4, 3))
    assert ridge.solve(torch.zeros(0, 0)).shape == (0, 3)

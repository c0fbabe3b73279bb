"""Ridge regression from its normal equations, accumulated block by block: memory does not grow with
the samples.

    W = (X' X + R)^-1 X' (Y - m)            X (N, F), Y (N, D), R (F, F), m the mean row of Y

Samples belong to folds, so that W can be solved without those of one (cross-fitting). Hoerl and
Kennard, Ridge Regression (1970).
"""

from __future__ import annotations

import torch
from torch import Tensor

# Of the mean of the diagonal, added to it: where two landmarks are the same X'X + R is singular,
# and R comes in float32. Products are float64: of float32 ones it does not make up for rounding.
JITTER = 1e-5
CHUNK = 512  # columns of X'X that are made at once, from the diagonal down: all that Cholesky reads


class Ridge:
    """F features -> D targets."""

    def __init__(self, features: int, targets: int, folds: int, device: torch.device) -> None:
        exact = {"dtype": torch.float64, "device": device}
        self._gram = torch.zeros(folds, features, features, **exact)
        self._cross = torch.zeros(folds, features, targets, **exact)
        self._features = torch.zeros(folds, features, **exact)
        self._targets = torch.zeros(folds, targets, **exact)
        self._counts = torch.zeros(folds, **exact)

    def add(self, x: Tensor, y: Tensor, fold: int = 0) -> None:
        """x (B, F) and y (B, D) of samples of one fold."""
        x, y = x.double(), y.double()
        for at in range(0, x.shape[1], CHUNK):
            self._gram[fold, at:, at : at + CHUNK] += x[:, at:].T @ x[:, at : at + CHUNK]
        self._cross[fold] += x.T @ y
        self._features[fold] += x.sum(0)
        self._targets[fold] += y.sum(0)
        self._counts[fold] += len(x)

    def solve(self, penalty: Tensor, without: int | None = None) -> Tensor:
        """W (F, D) float32, of all folds or of all but one; penalty R (F, F) positive semidefinite.

        ValueError where no sample is left.
        """
        kept = [fold for fold in range(len(self._counts)) if fold != without]
        count = self._counts[kept].sum()
        if not count:
            raise ValueError("ridge: expected samples, found none")
        mean = self._targets[kept].sum(0) / count
        left = self._gram[kept].sum(0) + penalty  # its lower triangle
        left.diagonal().add_(JITTER * left.diagonal().mean())
        right = self._cross[kept].sum(0) - self._features[kept].sum(0)[:, None] * mean
        return torch.cholesky_solve(right, torch.linalg.cholesky(left)).float()

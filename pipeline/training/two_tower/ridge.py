"""Ridge regression from its normal equations, gathered block by block: memory does not grow with
the samples.

    W = (X' X + R)^-1 X' (Y - m)            X (N, F), Y (N, D), R (F, F), m the mean row of Y

Samples are of parts, so that W can be had without those of one. Hoerl and Kennard, Ridge
Regression (1970).
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

    def __init__(self, features: int, targets: int, parts: int, device: torch.device) -> None:
        exact = {"dtype": torch.float64, "device": device}
        self._gram = torch.zeros(parts, features, features, **exact)
        self._cross = torch.zeros(parts, features, targets, **exact)
        self._features = torch.zeros(parts, features, **exact)
        self._targets = torch.zeros(parts, targets, **exact)
        self._counts = torch.zeros(parts, **exact)

    def add(self, x: Tensor, y: Tensor, part: int = 0) -> None:
        """x (B, F) and y (B, D) of samples of one part."""
        x, y = x.double(), y.double()
        for at in range(0, x.shape[1], CHUNK):
            self._gram[part, at:, at : at + CHUNK] += x[:, at:].T @ x[:, at : at + CHUNK]
        self._cross[part] += x.T @ y
        self._features[part] += x.sum(0)
        self._targets[part] += y.sum(0)
        self._counts[part] += len(x)

    def solved(self, penalty: Tensor, without: int | None = None) -> Tensor:
        """W (F, D) float32, of all parts or of all but one; penalty R (F, F) positive semidefinite.

        ValueError where no sample is left.
        """
        kept = [part for part in range(len(self._counts)) if part != without]
        count = self._counts[kept].sum()
        if not count:
            raise ValueError("ridge: expected samples, found none")
        mean = self._targets[kept].sum(0) / count
        left = self._gram[kept].sum(0) + penalty  # its lower triangle
        left.diagonal().add_(JITTER * left.diagonal().mean())
        right = self._cross[kept].sum(0) - self._features[kept].sum(0)[:, None] * mean
        return torch.cholesky_solve(right, torch.linalg.cholesky(left)).float()

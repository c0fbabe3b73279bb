"""Hubness reduction: joint vectors that are near very many queries are scaled down.

    j' = [ l j, sqrt(1 - l^2) ]         l = min(1, (NEAR / n(j))^p)

n(j) is the mean cosine of j with its NEAREST nearest captions of a query bank of some thousand,
without the very nearest: of a training picture, that is its own caption. In high dimensions some
vectors are among the nearest neighbours of very many others (Radovanovic et al., Hubs in Space,
2010). To divide similarity by the nearness to a bank of queries undoes that (Jegou et al., A
contextual dissimilarity measure, 2007; Bogolin et al., QB-Norm, 2022; Conneau et al., CSLS, 2018,
subtract). The division is part of the vector: text and image vectors are 0 in the last dimension,
so their cosine with j' is l times that with j, and any index of unit vectors will do. A j' must not
be used as a query: it would favour hubs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

NEAREST = 10
NEAR = 0.3  # vectors with a smaller nearness keep length 1


class HubnessReduction(nn.Module):
    """`query_bank` (N, E'), unit rows: vectors of captions, one of a picture."""

    def __init__(self, size: int, space: int) -> None:
        super().__init__()
        self.query_bank = nn.Parameter(torch.zeros(size, space), requires_grad=False)

    def nearness(self, joint: Tensor) -> Tensor:
        """Unit rows (B, E') -> n (B,)."""
        nearest = (joint @ self.query_bank.T).topk(min(NEAREST + 1, len(self.query_bank)), dim=1)
        return nearest.values[:, 1:].mean(dim=1)

    def forward(self, joint: Tensor, power: float) -> Tensor:
        """Unit rows (B, E') and p -> j', unit rows (B, E' + 1); the last column 0 if p = 0."""
        length = (NEAR / self.nearness(joint).clamp(min=NEAR)) ** power
        rest = (1 - length.square()).sqrt()
        return torch.cat([length[:, None] * joint, rest[:, None]], dim=1)

"""Hubs: joint vectors that lie near very many queries and are found where they are not meant.

    j' = [ l j, sqrt(1 - l^2) ]         l = min(1, (NEAR / n(j))^p)

n(j) is the mean cosine of j with the NEAREST likest of some thousand captions, but for the likest:
of a picture that was learned from, that is its own. Where dimensions are many, some vectors are
among the nearest of very many others (Radovanovic et al., Hubs in Space, 2010); to divide likeness
by how near a vector lies to whatever may be asked undoes that (Jegou et al., A contextual
dissimilarity measure, 2007; Conneau et al., CSLS, 2018, subtract). The division is part of the
vector: texts and pictures have nothing in the last dimension, so their cosine with j' is l times
that with j, and any index of unit vectors will do. Only a j' that is itself asked by favours hubs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

NEAREST = 10
NEAR = 0.3  # what lies no nearer keeps its length


class Hubs(nn.Module):
    """`asked` (N, E'), unit rows: captions, one of a picture."""

    def __init__(self, asked: int, space: int) -> None:
        super().__init__()
        self.asked = nn.Parameter(torch.zeros(asked, space), requires_grad=False)

    def nearness(self, joint: Tensor) -> Tensor:
        """Unit rows (B, E') -> n (B,)."""
        likest = (joint @ self.asked.T).topk(min(NEAREST + 1, len(self.asked)), dim=1)
        return likest.values[:, 1:].mean(dim=1)

    def forward(self, joint: Tensor, power: float) -> Tensor:
        """Unit rows (B, E') and p -> j', unit rows (B, E' + 1); with p = 0 the last is nothing."""
        length = (NEAR / self.nearness(joint).clamp(min=NEAR)) ** power
        rest = (1 - length.square()).sqrt()
        return torch.cat([length[:, None] * joint, rest[:, None]], dim=1)

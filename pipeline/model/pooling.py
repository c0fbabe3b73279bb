"""Pooling: tokens -> one vector, by the mean and by attention of one learned query (Zhai et al.,
Scaling Vision Transformers, 2022).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from chiasm.pipeline.model.attention import Attention
from chiasm.pipeline.model.blocks import Mlp


class Pool(nn.Module):
    """The mean of all tokens, plus attention of one learned query, then a residual MLP.

    The mean passes gradients to every token from the first step; the query alone learns slowly.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 1, width) * width**-0.5)
        self.attention = Attention(width, heads)
        self.norm = nn.LayerNorm(width)
        self.mlp = Mlp(width)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """tokens (B, T, D), mask (B, 1, 1, T) bool -> (B, D), 0 in rows without a token."""
        x = self.attention(self.query.expand(len(tokens), -1, -1), tokens, mask)[:, 0]  # (B, D)
        if mask is None:
            x = x + tokens.mean(1)
            return x + self.mlp(self.norm(x))
        weights = mask[:, 0, 0, :, None].to(tokens.dtype)  # (B, T, 1)
        count = weights.sum(1)  # (B, 1)
        x = x + (tokens * weights).sum(1) / count.clamp(min=1)
        return (x + self.mlp(self.norm(x))).masked_fill(count == 0, 0)

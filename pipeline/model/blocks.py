"""A transformer block, pre-norm:  x + attention(norm(x)),  then  x + mlp(norm(x)).

Pre-norm (Xiong et al., On Layer Normalization in the Transformer Architecture, 2020) trains without
a long warm-up, at the price of one more norm at the end of a tower.
"""

from __future__ import annotations

from torch import Tensor, nn

from chiasm.pipeline.model.attention import Attention

EXPANSION = 4  # of the width inside the MLP: the usual one


class Mlp(nn.Sequential):
    """(..., D) -> (..., D) through 4 D and GELU."""

    def __init__(self, width: int) -> None:
        super().__init__(
            nn.Linear(width, EXPANSION * width),
            nn.GELU(approximate="tanh"),
            nn.Linear(EXPANSION * width, width),
        )


class Block(nn.Module):
    """Self attention and an MLP around one residual stream."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, T, D), mask as in `multi_head_attention` -> (B, T, D)."""
        x = x + self.attention(self.attention_norm(x), mask=mask)
        return x + self.mlp(self.mlp_norm(x))

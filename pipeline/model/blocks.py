"""A transformer block, pre-norm:  x + attention(norm(x)),  then  x + mlp(norm(x)).

Pre-norm (Xiong et al., On Layer Normalization in the Transformer Architecture, 2020) trains without
a long warm-up, at the price of one more norm at the end of a tower.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from chiasm.pipeline.model.attention import Attention, KeysValues

EXPANSION = 4  # of the width inside the MLP: the usual one
# Of the tied query and key projections at the start: without it attention is near uniform.
QUERY_KEY_GAIN = 1.5


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


class CrossBlock(nn.Module):
    """x + self attention, + attention to a context, + an MLP, each of a norm of x: pre-norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.cross_norm = nn.LayerNorm(width)
        self.context_norm = nn.LayerNorm(width)
        self.cross = Attention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = Mlp(width)

    def tie_query_and_key(self) -> None:
        """Copy the query projection to the key projection: attention starts by similarity, which
        helps where the modalities' tokens are aligned (`losses.late_interaction`)."""
        width = len(self.cross.query.weight)
        with torch.no_grad():
            self.cross.query.weight.mul_(QUERY_KEY_GAIN)
            self.cross.key_value.weight[:width].copy_(self.cross.query.weight)

    def forward(
        self, x: Tensor, mask: Tensor | None, context: Tensor, context_mask: Tensor | None
    ) -> Tensor:
        """x (B, T, D), context (B, S, D), masks of shapes that broadcast to (B, H, T, T) and
        (B, H, T, S) -> (B, T, D)."""
        return self.attend(x, mask, self.keys_values(context), context_mask)

    def keys_values(self, context: Tensor) -> KeysValues:
        """context (B, S, D) -> what `attend` reads of it, which many x can share."""
        return self.cross.keys_values(self.context_norm(context))

    def attend(
        self, x: Tensor, mask: Tensor | None, context: KeysValues, context_mask: Tensor | None
    ) -> Tensor:
        """As `forward`, with the keys and values of the context."""
        x = x + self.attention(self.attention_norm(x), mask=mask)
        x = x + self.cross.attend(self.cross_norm(x), context, context_mask)
        return x + self.mlp(self.mlp_norm(x))

"""Attention: one function and one module, for self and cross attention alike.

    softmax(q k^T / sqrt(d) + mask) v        Vaswani et al., Attention Is All You Need, 2017, eq. 1

The fused kernels of torch are used unless the weights themselves are asked for, which costs the
(B, H, T, S) matrix they never hold, or where they are the slower way.
"""

from __future__ import annotations

import math
from typing import Literal, overload

import torch
from torch import Tensor, nn
from torch.nn import functional


@overload
def multi_head_attention(
    q: Tensor, k: Tensor, v: Tensor, num_heads: int, mask: Tensor | None = None,
    return_weights: Literal[False] = False,
) -> Tensor: ...  # fmt: skip
@overload
def multi_head_attention(
    q: Tensor, k: Tensor, v: Tensor, num_heads: int, mask: Tensor | None = None,
    *, return_weights: Literal[True],
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
def multi_head_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    num_heads: int,
    mask: Tensor | None = None,
    return_weights: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of q over k and v, the width D being cut into `num_heads` heads of d = D / H.

    q (B, T, D), k and v (B, S, D) -> (B, T, D), and the weights (B, H, T, S) where asked for, rows
    summing to 1. mask: bool, True where q attends, of a shape that broadcasts to (B, H, T, S):
    padding (B, S) is given as (B, 1, 1, S). The output of a row that is all False is undefined.
    """
    query, key, value = (_split(x, num_heads) for x in (q, k, v))  # (B, H, T or S, d)
    if not return_weights and not _slow_when_fused(query):
        heads = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return _join(heads)
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])  # (B, H, T, S)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    weights = scores.softmax(dim=-1)
    heads = _join(weights @ value)
    return (heads, weights) if return_weights else heads


def _slow_when_fused(query: Tensor) -> bool:
    """On CPUs the fused kernel's bfloat16 backward takes 4.5 times as long as the formula itself
    (torch 2.13, 256 x 81 tokens); its forward alone is fine."""
    training = torch.is_grad_enabled() and query.requires_grad
    return training and query.device.type == "cpu" and query.dtype == torch.bfloat16


def _split(x: Tensor, num_heads: int) -> Tensor:
    """(B, T, H d) -> (B, H, T, d)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def _join(x: Tensor) -> Tensor:
    """(B, H, T, d) -> (B, T, H d)."""
    return x.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Projections around `multi_head_attention`: of x over itself, or over a context."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """x (B, T, D), context (B, S, D), None for x itself, mask as above -> (B, T, D)."""
        key, value = self.key_value(x if context is None else context).chunk(2, dim=-1)  # (B, S, D)
        return self.out(multi_head_attention(self.query(x), key, value, self.heads, mask))

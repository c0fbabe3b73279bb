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

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@overload
def multi_head_attention(
    Q: Tensor, K: Tensor, V: Tensor, num_heads: int, mask: Tensor | None = None,
    return_weights: Literal[False] = False,
) -> Tensor: ...  # fmt: skip
@overload
def multi_head_attention(
    Q: Tensor, K: Tensor, V: Tensor, num_heads: int, mask: Tensor | None = None,
    *, return_weights: Literal[True],
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
def multi_head_attention(
    Q: Tensor,
    K: Tensor,
    V: Tensor,
    num_heads: int,
    mask: Tensor | None = None,
    return_weights: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of Q over K and V, the width D being cut into `num_heads` heads of d = D / H.

    Q (B, T, D), K and V (B, S, D) -> (B, T, D), and the weights (B, H, T, S) where asked for. mask:
    bool, True where Q attends, of a shape that broadcasts to (B, H, T, S): padding (B, S) is given
    as (B, 1, 1, S). Weights of a row sum to 1; a row that attends nowhere has weights and output 0.
    A key that no row attends to, such as padding, may be anything, NaN too. ValueError where D is
    no multiple of `num_heads`, for K or V of another shape or dtype, for numbers that are not
    floating or have 8 bits, and for a mask that does not broadcast or is not bool.
    """
    _require_fit(Q, K, V, num_heads, mask)
    if mask is not None:
        mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
        read = mask.any(dim=(1, 2))[..., None]  # (B or 1, S or 1, 1)
        if read.device.type != "cpu" or not read.all():  # to look would make an accelerator wait
            same, K = K is V, K.masked_fill(~read, 0)
            V = K if same else V.masked_fill(~read, 0)
    query, key, value = (_split(x, num_heads) for x in (Q, K, V))
    if return_weights:
        weights = _weights(query, key, mask)
        return _join(weights @ value), weights
    return _join(_attend(query, key, value, mask))


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """query (B, H, T, d), key and value (B, H, S, d) -> (B, H, T, d)."""
    if _slow_when_fused(query):
        return _weights(query, key, mask) @ value
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def _weights(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """query (B, H, T, d), key (B, H, S, d) -> the softmax by the formula, (B, H, T, S)."""
    dtype = query.dtype
    if dtype == torch.float16:  # whose products overflow; the fused kernels sum in float32
        query, key = query.float(), key.float()
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    if mask is None:
        return scores.softmax(dim=-1).to(dtype)
    # The lowest number, not -inf: the softmax of a row of -inf is NaN, and so is its gradient.
    weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(dim=-1)
    return weights.masked_fill(~mask, 0).to(dtype)


def _require_fit(Q: Tensor, K: Tensor, V: Tensor, num_heads: int, mask: Tensor | None) -> None:
    query, key = Q.shape, K.shape
    fit = len(query) == len(key) == 3 and query[0] == key[0] and query[2] == key[2]
    if not fit or V.shape != key:
        raise ValueError(
            "Q, K, V: expected (B, T, D), (B, S, D) and (B, S, D), found "
            f"{tuple(query)}, {tuple(key)} and {tuple(V.shape)}"
        )
    if not Q.dtype == K.dtype == V.dtype or Q.dtype not in DTYPES:
        raise ValueError(
            "Q, K, V: expected one floating dtype of 16 bits or more, found "
            f"{Q.dtype}, {K.dtype} and {V.dtype}"
        )
    if type(num_heads) is not int or num_heads < 1 or query[2] % num_heads:
        raise ValueError(
            f"num_heads {num_heads}: expected a divisor of the width, found {query[2]}"
        )
    if mask is None:
        return
    sizes = (query[0], num_heads, query[1], key[1])
    fit = mask.ndim <= 4 and all(
        size in (1, wanted)
        for size, wanted in zip(reversed(mask.shape), reversed(sizes), strict=False)
    )
    if not fit or mask.dtype != torch.bool:
        raise ValueError(
            f"mask: expected bool of a shape that broadcasts to (B, H, T, S), here {sizes}, found "
            f"{mask.dtype} of {tuple(mask.shape)}"
        )


def _slow_when_fused(query: Tensor) -> bool:
    """On CPUs the fused kernel's bfloat16 backward takes 4.5 times as long as the formula itself
    (torch 2.13, 256 x 81 tokens), and its forward two to four times as long for one query, as of a
    token that is being written (64 x 36 tokens); of more queries the forward alone is fine."""
    training = torch.is_grad_enabled() and query.requires_grad
    slow = training or query.shape[2] == 1
    return slow and query.device.type == "cpu" and query.dtype == torch.bfloat16


def _split(x: Tensor, num_heads: int) -> Tensor:
    """(B, T, H d) -> (B, H, T, d)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def _join(x: Tensor) -> Tensor:
    """(B, H, T, d) -> (B, T, H d)."""
    return x.transpose(1, 2).flatten(2)


KeysValues = tuple[Tensor, Tensor]
"""Keys and values (B, H, S, d) of a context, projected and cut into heads."""


class Attention(nn.Module):
    """Projections around `multi_head_attention`: of x over itself, or over a context."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def keys_values(self, context: Tensor) -> KeysValues:
        """context (B, S, D) -> what `attend` reads of it, which many x can share: laid out once as
        products of matrices need it."""
        key, value = self.key_value(context).chunk(2, dim=-1)
        return _split(key, self.heads).contiguous(), _split(value, self.heads).contiguous()

    def attend(self, x: Tensor, context: KeysValues, mask: Tensor | None = None) -> Tensor:
        """x (B, T, D) over keys and values (B, H, S, d), mask as above -> (B, T, D)."""
        query = _split(self.query(x), self.heads)
        return self.out(_join(_attend(query, *context, mask)))

    def forward(
        self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """x (B, T, D), context (B, S, D), None for x itself, mask as above -> (B, T, D)."""
        return self.attend(x, self.keys_values(x if context is None else context), mask)

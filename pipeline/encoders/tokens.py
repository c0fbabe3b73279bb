"""The tokens of a batch as its columns have them: checked, at their rows, in float16."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from chiasm.pipeline.encoders.faults import Fault
from chiasm.pipeline.encoders.protocols import Encoded
from chiasm.pipeline.records import TokenColumn


def scatter_tokens(
    encoded: Encoded, rows: np.ndarray, size: int, width: int, part: str
) -> TokenColumn:
    """The tokens of `rows` (n,) among `size` rows. Raises Fault where an item has none, where they
    are not of that width, and where float16 cannot hold them."""
    tokens = encoded.tokens
    if tokens is None or tokens.values.ndim != 2 or tokens.values.shape[1] != width:
        found = "none" if tokens is None else f"shape {tokens.values.shape}"
        raise Fault("refused", f"{part}: tokens of width {width} expected, {found} found")
    if len(tokens.lengths) != len(rows) or tokens.lengths.sum() != len(tokens.values):
        raise Fault("refused", f"{part}: tokens of {len(tokens.lengths)} items, not {len(rows)}")
    if (tokens.lengths < 1).any():
        raise Fault("refused", f"{part}: no token")
    with np.errstate(over="ignore"):
        values = np.asarray(tokens.values, dtype=np.float16)
    if not np.isfinite(values).all():
        raise Fault("not_finite", f"{part}: NaN, infinity or more than float16 in a token")
    lengths = np.zeros(size, np.int64)
    lengths[rows] = tokens.lengths
    return TokenColumn(values, lengths)


def joined_tokens(
    pieces: Sequence[Mapping[str, TokenColumn]], sizes: Sequence[int]
) -> dict[str, TokenColumn]:
    """The columns of consecutive parts of so many rows as one; a part without any lacks it."""
    joined = {}
    for name in dict.fromkeys(name for piece in pieces for name in piece):
        parts = [
            (piece[name].values, piece[name].lengths)
            if name in piece
            else (None, np.zeros(size, np.int64))
            for piece, size in zip(pieces, sizes, strict=True)
        ]
        joined[name] = TokenColumn(
            np.concatenate([values for values, _ in parts if values is not None]),
            np.concatenate([lengths for _, lengths in parts]),
        )
    return joined

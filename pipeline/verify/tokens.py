"""Stored tokens looked at: which rows have them, of how many numbers, and whether the encoder still
gives them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa

from chiasm.pipeline.collection import token_column, tokens_of
from chiasm.pipeline.encoders import Ragged, unit
from chiasm.pipeline.records import TokenColumn


def check_tokens(
    table: pa.Table, widths: Mapping[str, int], has: Mapping[str, np.ndarray], checked: Counter[str]
) -> Iterator[str]:
    """What is wrong with the columns of tokens: a row has tokens where, and only where, it has the
    modality's vector. widths: by modality. has: which rows have its vector, (rows,) bool. Counts
    tokens in `checked`."""
    for modality in widths:
        tokens = tokens_of(table[token_column(modality)])
        checked["tokens"] += len(tokens.values)
        wrong = np.flatnonzero((tokens.lengths > 0) != has[modality])
        if len(wrong):
            state = "no tokens" if has[modality][wrong[0]] else "tokens without a vector"
            yield f"{state} of {modality} in {len(wrong)} rows, the first {wrong[0]}"
        zero = np.flatnonzero(~np.any(tokens.values, axis=1))
        if len(zero):
            row = int(np.searchsorted(np.cumsum(tokens.lengths), zero[0], side="right"))
            yield f"{len(zero)} {modality} tokens are zeros, the first in row {row}"


def token_cosines(stored: Ragged, again: TokenColumn) -> np.ndarray:
    """How near the tokens of each row are to those encoded again, (rows,) float32: the mean over
    the stored ones of the best cosine among the others; pooling may put them in another order. 0
    where only one of the two has any, 1 where neither has."""
    ours, theirs = _split(stored.values, stored.lengths), _split(again.values, again.lengths)
    return np.array(
        [
            float((a @ b.T).max(axis=1).mean()) if len(a) and len(b) else float(len(a) == len(b))
            for a, b in zip(ours, theirs, strict=True)
        ],
        np.float32,
    )


def _split(values: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    return np.split(unit(values), np.cumsum(lengths)[:-1]) if len(lengths) else []

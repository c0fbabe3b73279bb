"""What a model does not take: why an item has no vector, or a pair no score.

Anything that an encoder or a matcher raises for an item, and any vector that is not of unit length,
is a fault of that item, if the model does the same when it is given the item alone. A model whose
fault it is shows it with any item, which `probe.py` finds out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from chiasm.pipeline.encoders.protocols import Array, Matcher
from chiasm.pipeline.errors import ChiasmError, Undecodable

ENCODE_REASONS = {  # every reason of stage "encode", and its description
    "refused": "the encoder raised an error for it alone, or gave no vector",
    "not_finite": "a vector of it has NaN or infinity",
    "not_unit": "a vector of it is zero, or not of length 1",
    "out_of_memory": "its forward pass does not fit in memory, even alone",
}
ENCODE_NOTES = {  # every reason of a note about a row that has vectors, and its description
    "text_truncated": "the caption is longer than the model takes, or than its fusion attends to; "
    "its end has no part in a vector",
}
UNIT_TOLERANCE = 1e-2  # of a vector's length; bfloat16 has 8 bits, so unit vectors are off by 4e-3
MAX_DETAIL = 200  # characters of a library's message, which may quote its whole input

# How the allocators of CUDA, cuBLAS and torch's CPU say that there is no memory. The exception's
# class says it too where it is one of its own, but this module does not import torch.
_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "alloc_failed",
    "cannot allocate memory",
)


class Fault(Exception):
    """Why one item, or a batch with such an item, has no vector, or a request no answer. reason: of
    ENCODE_REASONS, or `no_words`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"

    @classmethod
    def of(cls, error: Exception, part: str = "") -> Fault:
        """The fault that an exception means, without its traceback, whose frames hold the tensors
        of the batch. part: the modality or column that was encoded."""
        if isinstance(error, Fault):
            return cls(error.reason, error.detail)
        reason = "out_of_memory" if is_out_of_memory(error) else "refused"
        return cls(reason, f"{part}: {describe(error)}" if part else describe(error))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on the host or on a device."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _OUT_OF_MEMORY)


def describe(error: BaseException) -> str:
    """An exception as one line: its class and the first line of its text, which is cut."""
    if isinstance(error, ChiasmError):
        return str(error)[:MAX_DETAIL]
    if isinstance(error, Undecodable):  # an encoder's own word
        return f"{error.reason}: {error.detail}"[:MAX_DETAIL]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return line[:MAX_DETAIL].encode("utf-8", "backslashreplace").decode()


def require_unit_vectors(vectors: Any, rows: int, dim: int, part: str) -> Array:
    """The vectors as (rows, dim) float32; raises Fault where they are not that, or not unit
    vectors."""
    vectors = np.asarray(vectors)
    if vectors.shape != (rows, dim):
        raise Fault("refused", f"{part}: shape {vectors.shape}, not {(rows, dim)}")
    with np.errstate(all="ignore"):
        vectors = vectors.astype(np.float32, copy=False)
        lengths = np.linalg.norm(vectors, axis=1)
    if not np.isfinite(vectors).all():
        raise Fault("not_finite", f"{part}: NaN or infinity")
    wrong = ~(np.abs(lengths - 1) <= UNIT_TOLERANCE)
    if wrong.any():
        raise Fault("not_unit", f"{part}: length {lengths[wrong][0]:.3g}")
    return vectors


def match_checked(
    matcher: Matcher,
    a: tuple[str, Sequence[Any]],
    b: tuple[str, Sequence[Any]],
    pairs: Array,
) -> Array:
    """`matcher.match`: (P,) float32; raises Fault where a score is no finite number."""
    scores = np.asarray(matcher.match(a, b, pairs), dtype=np.float32)
    if scores.shape != (len(pairs),):
        raise Fault("refused", f"match: shape {scores.shape}, not {(len(pairs),)}")
    if not np.isfinite(scores).all():
        raise Fault("not_finite", "match: NaN or infinity")
    return scores


def match_each(
    matcher: Matcher,
    a: tuple[str, Sequence[Any]],
    b: tuple[str, Sequence[Any]],
    pairs: Array,
) -> tuple[Array, Mapping[int, Fault]]:
    """`match_checked`, and what the matcher does not take: (P,) float32, NaN for a pair without a
    score, and the fault of each of those by its number.

    All pairs are matched at once. Where that fails they are halved, each half with its own items
    alone, until those are found that fail by themselves."""
    scores = np.full(len(pairs), np.nan, np.float32)
    faults: dict[int, Fault] = {}
    spans = [(0, len(pairs))] if len(pairs) else []
    while spans:
        start, end = spans.pop()
        first, first_rows = np.unique(pairs[start:end, 0], return_inverse=True)
        second, second_rows = np.unique(pairs[start:end, 1], return_inverse=True)
        try:
            scores[start:end] = match_checked(
                matcher,
                (a[0], [a[1][i] for i in first]),
                (b[0], [b[1][i] for i in second]),
                np.stack([first_rows, second_rows], axis=1),
            )
            continue
        except Exception as error:  # noqa: BLE001  models raise anything
            fault = Fault.of(error, "match")
        if end - start == 1:
            faults[start] = fault
        else:
            middle = (start + end) // 2
            spans += [(start, middle), (middle, end)]
    return scores, faults

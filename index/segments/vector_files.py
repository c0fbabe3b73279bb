"""The vectors of a column that candidates are scored by: a file in row order, in one of two forms.

    float16   COLUMN.f16   (rows, D) float16
    int8      COLUMN.i8    of each row its least number and a step, float16 both, then D bytes

A number of 8 bits is the row's least one plus byte times step. The ranges are those of a row, not
of a dimension: rows that are added later are never out of range, and nothing has to be learned
first. For a query q an inner product is off by half a step times |q|_1 at the most. A row without a
vector is zeros in both. The third form, `none`, has no vectors (parquet_vectors.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

HEAD = 4  # bytes before the codes of a row: two float16
STEPS = 255

Rows = np.ndarray | slice  # numbers of rows, (n,) int64, or a range of them


class Vectors(Protocol):
    """The vectors of a column of a segment, to score by. Safe to share. `take` gives those of some
    rows, (n, dim) float32, zero where a row has none; `present` says which rows have one, (rows,)
    bool."""

    @property
    def dim(self) -> int: ...
    def __len__(self) -> int: ...
    def take(self, rows: Rows) -> np.ndarray: ...
    def present(self) -> np.ndarray: ...


class StoredVectors(Vectors, Protocol):
    """Of a file. stored: its rows, (rows, ...)."""

    @property
    def stored(self) -> np.ndarray: ...


@dataclass(frozen=True)
class Float16Vectors:
    """stored: (rows, dim) float16, mapped."""

    stored: np.ndarray

    @property
    def dim(self) -> int:
        return self.stored.shape[1]

    def __len__(self) -> int:
        return len(self.stored)

    def take(self, rows: Rows) -> np.ndarray:
        return as_float32(self.stored[rows])

    def present(self) -> np.ndarray:
        return np.any(self.stored, axis=1)


@dataclass(frozen=True)
class Int8Vectors:
    """stored: (rows, HEAD + dim) uint8, mapped."""

    stored: np.ndarray

    @property
    def dim(self) -> int:
        return self.stored.shape[1] - HEAD

    def __len__(self) -> int:
        return len(self.stored)

    def take(self, rows: Rows) -> np.ndarray:
        return dequantised(self.stored[rows])

    def present(self) -> np.ndarray:
        return np.any(self.stored[:, :HEAD], axis=1)


def quantised(vectors: np.ndarray) -> np.ndarray:
    """Vectors (n, D) float16 in the form int8: (n, HEAD + D) uint8."""
    x = vectors.astype(np.float32)
    low = vectors.min(axis=1, keepdims=True, initial=np.float16(np.inf))
    exact = (x.max(axis=1, keepdims=True, initial=-np.inf) - low) / STEPS
    step = exact.astype("<f2")
    # Rounded up, so that the greatest number has a byte.
    step = np.where(step < exact, np.nextafter(step, np.float16(np.inf)), step).astype("<f2")
    codes = np.rint((x - low) / np.where(step > 0, step, 1).astype(np.float32))
    head = np.concatenate([low.astype("<f2"), step], axis=1).view(np.uint8)
    return np.concatenate([head, codes.astype(np.uint8)], axis=1)


def dequantised(stored: np.ndarray) -> np.ndarray:
    """What (n, HEAD + D) uint8 stand for: (n, D) float32."""
    head = np.ascontiguousarray(stored[:, :HEAD]).view("<f2").astype(np.float32)
    vectors = stored[:, HEAD:].astype(np.float32)
    vectors *= head[:, 1:]
    vectors += head[:, :1]
    return vectors


def as_float32(halves: np.ndarray) -> np.ndarray:
    """Finite float16 as float32, the values unchanged: faster than numpy's own conversion.

    The bits of exponent and mantissa move to their places in a float32, whose exponent counts from
    112 higher.
    """
    bits = np.ascontiguousarray(halves).view(np.int16).astype(np.int32)
    bits <<= 13
    bits &= np.int32(-0x70002000)  # 0x8FFFE000: the sign, 5 bits of exponent, 10 of mantissa
    floats = bits.view(np.float32)
    floats *= np.float32(2.0**112)
    return floats


@dataclass(frozen=True)
class VectorForm:
    """A form that has a file. suffix: of its name. head: bytes of a row besides its numbers, bytes:
    of a number. stored: float16 vectors (n, D) as their bytes lie in the file. opened: what reads
    them."""

    suffix: str
    head: int
    bytes: int
    stored: Callable[[np.ndarray], np.ndarray]
    opened: Callable[[np.ndarray], StoredVectors]

    def row_bytes(self, dim: int) -> int:
        return self.head + self.bytes * dim

    def map(self, file: Any, rows: int, dim: int) -> StoredVectors:
        """The vectors in an open file, which may be closed afterwards."""
        dtype, width = ("<f2", dim) if self.bytes == 2 else ("u1", self.row_bytes(dim))
        # As a plain array: `memmap` costs microseconds an access.
        return self.opened(np.memmap(file, dtype, "r", shape=(rows, width)).view(np.ndarray))


FORMS = {
    "float16": VectorForm("f16", 0, 2, lambda vectors: vectors, Float16Vectors),
    "int8": VectorForm("i8", HEAD, 1, quantised, Int8Vectors),
}

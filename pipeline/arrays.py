"""Bytes of an `.npy` member -> an array, or `Undecodable` with a reason: for encoders of one's own.

Nothing is unpickled, and nothing is allocated by what a header claims: its shape and kind are
checked before the numbers, which are those that are there (the format: numpy.lib.format).
"""

from __future__ import annotations

import ast
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from chiasm.pipeline.errors import Undecodable

__all__ = ["ARRAY_REASONS", "decode_array"]

ARRAY_REASONS = {  # every reason of stage "decode" of an array, and its description
    "not_an_array": "its bytes begin like no .npy file",
    "truncated": "its bytes end before the array does",
    "corrupt": "its header cannot be read",
    "unsupported": "it holds objects or records, which are not read",
    "wrong_shape": "another shape, or other numbers, than the encoder takes",
    "too_many_numbers": "more numbers than the encoder takes",
    "not_finite_numbers": "a number is NaN or infinite",
}

MAX_NUMBERS = 1 << 24  # 64 MB as float32, as large as a member may be
_MAGIC, _LENGTH_BYTES = b"\x93NUMPY", {1: 2, 2: 4, 3: 4}  # by version of the format
_MAX_HEADER = 10_000  # bytes, as numpy itself takes; more is work for the parser


def decode_array(
    data: bytes,
    *,
    shape: Sequence[int | None] | None = None,
    kinds: str = "biuf",
    max_numbers: int = MAX_NUMBERS,
    finite: bool = True,
) -> np.ndarray:
    """The array in the bytes of an `.npy` file: a copy, in the byte order of this machine.

    shape: what it must be, None for any; in it None for any size of an axis. kinds: of numbers, as
    in `dtype.kind`: b, i, u, f and c. finite: NaN and infinity are refused. Raises Undecodable with
    a reason of ARRAY_REASONS, and nothing else, for any `data`."""
    kind, found, fortran, start = _header(data)
    if kind.hasobject or kind.kind not in "biufc":
        raise Undecodable("unsupported", f"numbers of type {kind.str}")
    fits = shape is None or len(shape) == len(found)
    if shape is not None and fits:
        fits = all(want in (None, have) for want, have in zip(shape, found, strict=True))
    if not fits or kind.kind not in kinds:
        raise Undecodable("wrong_shape", f"{kind.str} of shape {_short(found)}")
    count = math.prod(found)
    if count > max_numbers:
        raise Undecodable("too_many_numbers", f"{count} of at most {max_numbers}")
    if len(data) - start < count * kind.itemsize:
        missing = count * kind.itemsize - (len(data) - start)
        raise Undecodable("truncated", f"{missing} bytes are missing")
    try:
        flat = np.frombuffer(data, kind, count, start)
        array = flat.reshape(found, order="F" if fortran else "C")
    except ValueError as error:  # more axes than numpy has, or an empty buffer
        raise Undecodable("corrupt", f"shape {_short(found)}: {error}") from error
    if finite and array.dtype.kind in "fc" and not np.isfinite(array).all():
        raise Undecodable("not_finite_numbers", "NaN or infinity")
    return array.astype(kind.newbyteorder("="), copy=True)


def _header(data: bytes) -> tuple[np.dtype, tuple[int, ...], bool, int]:
    """Type, shape, whether the first axis goes fastest, and where the numbers begin."""
    if data[:6] != _MAGIC:
        raise Undecodable("not_an_array", f"what begins with {data[:8].hex(' ')}" if data else "")
    version = data[6] if len(data) > 6 else 0
    width = _LENGTH_BYTES.get(version, 0)
    if not width:
        raise Undecodable("truncated" if len(data) < 8 else "corrupt", f"version {version}")
    size = int.from_bytes(data[8 : 8 + width], "little")
    start = 8 + width + size
    if size > _MAX_HEADER:
        raise Undecodable("corrupt", f"a header of {size} bytes")
    if len(data) < start:
        raise Undecodable("truncated", "its header is cut")
    try:
        fields = ast.literal_eval(data[8 + width : start].decode("latin-1").strip())
        return *_checked(fields), start
    except Exception as error:  # a parser of foreign text raises anything
        raise Undecodable("corrupt", f"{type(error).__name__}: {str(error)[:80]}") from error


def _checked(fields: Any) -> tuple[np.dtype, tuple[int, ...], bool]:
    """ValueError for a header that is none."""
    if not isinstance(fields, dict) or fields.keys() != {"descr", "fortran_order", "shape"}:
        raise ValueError("not the fields of a header")
    shape, fortran = fields["shape"], fields["fortran_order"]
    whole = isinstance(shape, tuple) and all(type(size) is int and size >= 0 for size in shape)
    if not whole or not isinstance(fortran, bool):
        raise ValueError("no shape")
    if not isinstance(fields["descr"], str):
        return np.dtype(object), shape, fortran  # records
    return np.dtype(fields["descr"]), shape, fortran


def _short(shape: tuple[int, ...]) -> str:
    return str(shape)[:80]

"""Which samples are held out, and in which fold the others are: by their keys alone."""

from __future__ import annotations

import hashlib

HELD_OUT = 10  # one sample in so many is held out


FOLDS = 4  # of the samples, by their keys, for cross-fitting


def held_out(key: str) -> bool:
    """Is the sample of this key held out? By its key alone."""
    return _digest(key)[0] % HELD_OUT == 0


def fold_of(key: str) -> int:
    """Which of the FOLDS the sample of this key belongs to, by its key alone."""
    return _digest(key)[1] % FOLDS


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=2).digest()

"""Which samples are held out, and in which fold the others are: by the sha256 of the picture's
bytes, so that copies of a picture under several keys are on one side.
"""

from __future__ import annotations

SPLIT = "sha256 of the picture"  # what decides, as settings.json names it
HELD_OUT = 10  # one picture in so many is held out
FOLDS = 4  # of the pictures, for cross-fitting


def held_out(sha256: str) -> bool:
    """Is the picture of this digest, in hex, held out?"""
    return tenth_of(sha256) == 0


def tenth_of(sha256: str) -> int:
    """Which of HELD_OUT equal shares the picture of this digest belongs to; the first is held
    out."""
    return int(sha256[:8], 16) % HELD_OUT


def fold_of(sha256: str) -> int:
    """Which of the FOLDS the picture of this digest belongs to."""
    return int(sha256[8:16], 16) % FOLDS


def picture_number(sha256: str) -> int:
    """The first eight bytes as an int64: copies of a picture have one number."""
    return int.from_bytes(bytes.fromhex(sha256[:16]), signed=True)

"""The set of a shard's keys in 8 bytes for each: a shard may have millions of samples.

Digests of keys are kept in a sorted array, and new ones in a small set that is merged into it when
it has grown. Two keys with the same digest would lose the second sample; with ten million keys the
probability of such a pair is 1 in 370,000.
"""

from __future__ import annotations

import hashlib

import numpy as np

_MERGE_SIZE = 1 << 14


def digest_of(key: str) -> int:
    """A key in 64 bits."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


class SeenKeys:
    """A set of strings that only grows; false while it is empty."""

    def __init__(self) -> None:
        self._sorted = np.empty(0, np.uint64)
        self._unmerged: set[int] = set()

    def __len__(self) -> int:
        return len(self._sorted) + len(self._unmerged)

    def add(self, key: str) -> bool:
        """Add a key; returns whether it is new."""
        digest = digest_of(key)
        if self._has(digest):
            return False
        self._unmerged.add(digest)
        if len(self._unmerged) > max(_MERGE_SIZE, len(self._sorted) >> 3):
            new = np.fromiter(self._unmerged, np.uint64, len(self._unmerged))
            self._sorted = np.sort(np.concatenate([self._sorted, new]), kind="stable")
            self._unmerged.clear()
        return True

    def __contains__(self, key: str) -> bool:
        return self._has(digest_of(key))

    def _has(self, digest: int) -> bool:
        if digest in self._unmerged:
            return True
        position = int(self._sorted.searchsorted(np.uint64(digest))) if len(self._sorted) else 0
        return position < len(self._sorted) and int(self._sorted[position]) == digest

"""The keys of a shard that were seen, in 8 bytes each: a shard may have millions of samples.

Kept are digests, sorted, and a small set of the latest ones, which is merged in when it has grown.
Two keys with one digest would cost the second its sample; with ten million keys the odds of such a
pair are 1 in 370,000.
"""

from __future__ import annotations

import hashlib

import numpy as np

_LATEST = 1 << 14


class SeenKeys:
    """A set that only grows. It is true once it holds a key."""

    def __init__(self) -> None:
        self._sorted = np.empty(0, np.uint64)
        self._latest: set[int] = set()

    def __len__(self) -> int:
        return len(self._sorted) + len(self._latest)

    def add(self, key: str) -> bool:
        """Whether the key is new; it no longer is."""
        told = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        digest = int.from_bytes(told, "little")
        if digest in self._latest:
            return False
        if len(self._sorted):
            at = int(self._sorted.searchsorted(np.uint64(digest)))
            if at < len(self._sorted) and int(self._sorted[at]) == digest:
                return False
        self._latest.add(digest)
        if len(self._latest) > max(_LATEST, len(self._sorted) >> 3):
            new = np.fromiter(self._latest, np.uint64, len(self._latest))
            self._sorted = np.sort(np.concatenate([self._sorted, new]), kind="stable")
            self._latest.clear()
        return True

"""Checksums of the blocks of a file, so that a distant reader verifies a part of it alone.

    COLUMN.f16.blocks, COLUMN.i8.blocks
                         int64: bytes of a block; then the digest of each, the last may be
                         shorter
    rows.arrow.blocks    int64: how many blocks, n; int32 (n,): bytes of each; int32 (n,): rows of
                         each; then their digests. A block is a record batch; the first is what
                         comes before them, the last what comes after, both of 0 rows

Numbers are little-endian. A digest has 8 bytes: it is to find damage, of which one in 2^64 passes.
Whoever can forge a block can write CURRENT, too. The file of the digests has its own checksum in
`segment.json`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

DIGEST = 8
# Candidates lie all over a segment, so each costs a block, and a block costs a digest of all of
# them: for fifty candidates of 1 M rows the sum is smallest at some 8 KiB.
VECTOR_BLOCK = 8 << 10


@dataclass(frozen=True, eq=False)
class Blocks:
    """How a file is divided. offsets (n + 1,) int64: where each block begins, and the last ends.
    digests (n,): blake2b of each, of as many bytes as an item has. rows (n,) int64, of a catalog:
    how many of its rows each has."""

    offsets: np.ndarray
    digests: np.ndarray
    rows: np.ndarray | None = None

    @classmethod
    def of_vectors(cls, content: bytes, size: int) -> Blocks:
        """What such a file says of a file of so many bytes; ValueError for other content."""
        block = int(np.frombuffer(content, "<i8", 1)[0])
        count = -(-size // block) if block > 0 else -1
        offsets = np.minimum(np.arange(count + 1, dtype=np.int64) * block, size)
        return cls(offsets, np.frombuffer(content[8:], f"V{DIGEST}", count))._checked(content, 8)

    @classmethod
    def of_catalog(cls, content: bytes, size: int) -> Blocks:
        """What rows.arrow.blocks says of a file of so many bytes; ValueError for other content."""
        count = int(np.frombuffer(content, "<i8", 1)[0])
        if count < 2:
            raise ValueError(f"{count} blocks")
        lengths, rows = np.frombuffer(content, "<i4", 2 * count, 8).reshape(2, count)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
        if offsets[-1] != size or lengths.min() < 0 or rows.min() < 0:
            raise ValueError(f"blocks of {offsets[-1]} bytes")
        digests = np.frombuffer(content, f"V{DIGEST}", count, 8 + 8 * count)
        return cls(offsets, digests, rows.astype(np.int64))._checked(content, 8 + 8 * count)

    def _checked(self, content: bytes, head: int) -> Blocks:
        if len(content) != head + self.digests.nbytes:
            raise ValueError(f"{len(content)} bytes")
        return self


class VectorBlocks:
    """Digests of the blocks of a file of rows of so many bytes, as they are written."""

    def __init__(self, row_bytes: int) -> None:
        self._size = max(1, VECTOR_BLOCK // row_bytes) * row_bytes
        self._rest = b""
        self._digests: list[bytes] = []

    def add(self, data: bytes) -> None:
        data = self._rest + data
        whole = len(data) // self._size * self._size
        view = memoryview(data)
        for start in range(0, whole, self._size):
            self._digests.append(_digest(view[start : start + self._size]))
        self._rest = data[whole:]

    def to_bytes(self) -> bytes:
        rest = [_digest(self._rest)] if self._rest else []
        return np.array(self._size, "<i8").tobytes() + b"".join(self._digests + rest)


class CatalogBlocks:
    """A file that is written through to another; `cut` ends a block."""

    closed = False

    def __init__(self, file: Any) -> None:
        self._file, self._block = file, bytearray()
        self._blocks: list[tuple[int, int]] = []  # bytes and rows
        self._digests: list[bytes] = []

    def write(self, data: Any) -> int:
        self._block += data
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def tell(self) -> int:
        return self._file.tell()

    @property
    def block(self) -> bytes:
        """What was written since the last cut."""
        return bytes(self._block)

    def cut(self, rows: int, size: int | None = None) -> None:
        """End a block of `size` bytes, None for all that was written since the last."""
        size = len(self._block) if size is None else size
        self._blocks.append((size, rows))
        self._digests.append(_digest(memoryview(self._block)[:size]))
        self._block = self._block[size:]

    def to_bytes(self) -> bytes:
        lengths_and_rows = np.array(self._blocks, "<i4").T
        count = np.array(len(self._blocks), "<i8")
        return count.tobytes() + lengths_and_rows.tobytes() + b"".join(self._digests)


def _digest(data: Any) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST).digest()

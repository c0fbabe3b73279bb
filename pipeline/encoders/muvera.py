"""MUVERA: a vector for each token of an item -> one vector, so that the inner product of a query's
and a document's estimates their MaxSim, sum over the query's tokens of the best inner product.

After Dhulipala, Hadian, Jayaram, Lee and Mirrokni, "MUVERA: Multi-Vector Retrieval via Fixed
Dimensional Encodings", 2024. Random hyperplanes put tokens into partitions. Of each partition a
query has the sum of its tokens, a document their mean: where a query's token and the document's
nearest one share a partition, their product is a term of the sum. A partition in which a document
has no token gets the token that lies fewest hyperplanes away; queries leave theirs empty. Each
partition is projected by random signs. All that is done several times, and a count sketch brings
the whole to the width that is wanted.

It knows neither data nor model, so that a shard's rows depend on no other shard. How much that
costs where texts and pictures lie apart, and what an index fits to its data in its place, is in
index/segments/proposals.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from chiasm.pipeline.encoders.base import unit
from chiasm.pipeline.encoders.protocols import Array, Ragged

# With a sketch of a few hundred numbers, more partitions lose more to the sketch than they bring:
# 8 of them keep more of MaxSim's best rows than 16 or 32 on the tokens of `pocket`, seed 1.
BITS, REPETITIONS, INNER = 3, 20, 16
SEED = 0


class Muvera:
    """Token vectors of `width` numbers -> vectors of `dims`. bits: hyperplanes of a repetition,
    2 ** bits partitions. inner: numbers that a partition is projected to. Safe to share."""

    def __init__(
        self,
        width: int,
        dims: int,
        *,
        bits: int = BITS,
        repetitions: int = REPETITIONS,
        inner: int = INNER,
        seed: int = SEED,
    ) -> None:
        # The stream of `Generator` may change with numpy, that of `RandomState` never does.
        rng = np.random.RandomState(seed)
        self.width, self.dims = width, dims
        self._count, self._inner = 1 << bits, min(inner, width)
        self._planes = rng.randn(repetitions, width, bits).astype(np.float32)
        signs = rng.randint(0, 2, (repetitions, width, self._inner)) * 2 - 1
        self._project = signs.astype(np.float32) / np.float32(np.sqrt(self._inner))
        if self._inner == width:  # nothing to shorten: the tokens as they are
            self._project = np.broadcast_to(np.eye(width, dtype=np.float32), signs.shape)
        size = repetitions * self._count * self._inner
        self._sketch: Any = sparse.csr_matrix(
            ((rng.randint(0, 2, size) * 2 - 1).astype(np.float32),
             (np.arange(size), rng.randint(0, dims, size))), (size, dims)
        )  # fmt: skip
        places = np.arange(self._count)
        self._apart = np.bitwise_count(places[:, None] ^ places)  # hyperplanes between partitions

    @property
    def rule(self) -> dict[str, Any]:
        """What decides the vectors, in words and numbers."""
        repetitions, _, bits = self._planes.shape
        return {
            "name": "MUVERA 1",
            "dims": self.dims,
            "bits": bits,
            "repetitions": repetitions,
            "inner": self._inner,
        }

    def documents(self, tokens: Ragged) -> Array:
        """B matrices of tokens -> (B, dims) float32 unit rows; zero where there is no token."""
        return unit(self.raw_documents(tokens))

    def queries(self, tokens: Ragged) -> Array:
        """The same for queries: the length of a query's vector ranks nothing."""
        return unit(self.raw_queries(tokens))

    def raw_documents(self, tokens: Ragged) -> Array:
        """(B, dims) float32 before it is scaled: `raw_queries @ raw_documents.T` over the number of
        repetitions estimates MaxSim."""
        return self._encode(tokens, documents=True)

    def raw_queries(self, tokens: Ragged) -> Array:
        return self._encode(tokens, documents=False)

    def _encode(self, tokens: Ragged, *, documents: bool) -> Array:
        count, (repetitions, width, planes) = len(tokens.lengths), self._planes.shape
        values = np.ascontiguousarray(tokens.values, np.float32)
        # All repetitions at once: each call of scipy's takes a tenth of a millisecond.
        bits = values @ self._planes.transpose(1, 0, 2).reshape(width, -1) > 0
        parts = bits.reshape(len(values), repetitions, planes) @ (1 << np.arange(planes))
        items = np.repeat(np.arange(count), tokens.lengths)
        places = (items[:, None] * repetitions + np.arange(repetitions)) * self._count + parts
        shorter = values @ self._project.transpose(1, 0, 2).reshape(width, -1)
        blocks = self._partitions(
            shorter.reshape(-1, self._inner), places.ravel(), count * repetitions, documents
        )
        return blocks.reshape(count, self._sketch.shape[0]) @ self._sketch

    def _partitions(self, values: Array, places: Array, count: int, documents: bool) -> Array:
        """The partitions (count, partitions, inner) of items. places: of each token, the number of
        its partition among those of all items."""
        size, tokens = count * self._count, len(values)
        ones = np.ones(tokens, np.float32)
        members: Any = sparse.csr_matrix((ones, (places, np.arange(tokens))), (size, tokens))
        blocks = members @ values
        if documents and tokens:
            having = np.bincount(places, minlength=size)
            blocks /= np.maximum(having, 1)[:, None].astype(np.float32)
            self._fill(blocks, values, places, having)
        return blocks.reshape(count, self._count, self._inner)

    def _fill(self, blocks: Array, values: Array, places: Array, having: Array) -> None:
        """Put into each empty partition of an item the first token of the partition fewest
        hyperplanes away, of several the one with the lowest number."""
        full = having.reshape(-1, self._count) > 0
        gaps = np.where(full[:, None, :], self._apart, np.iinfo(np.uint8).max)
        nearest = gaps.argmin(axis=2) + np.arange(len(full))[:, None] * self._count
        first = np.zeros(len(having), np.int64)
        first[places[::-1]] = np.arange(len(places))[::-1]
        empty = (~full & full.any(axis=1, keepdims=True)).ravel()
        blocks[empty] = values[first[nearest.ravel()[empty]]]

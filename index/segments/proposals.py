"""What an index fits to the tokens of a column: one vector an item, so that the best of its inner
products with a query's are likely to have the best MaxSim. A search scores those by their tokens.

It is a fixed-dimensional encoding as MUVERA's (pipeline/encoders/muvera.py), with two parts of it
fitted to data where MUVERA draws them. The partitions are those of k-means of query tokens; of each
a document has the token with the greatest inner product with its centre, and a query the sum of its
own, each shared among the few partitions that are nearest to it. Of these, some ten thousand
numbers, a projection keeps those directions in which documents differ as queries see them: the
principal components under the second moment of the query tokens of each partition. What all
documents have in common ranks nothing and is subtracted.

Why fitted: texts and pictures of one space lie apart, and no random hyperplane puts a word where
its patch is. Of 10,000 drawn scenes, by the tokens of `pocket`, the best 100 of MUVERA's with
10,240 numbers hold 0.35 of MaxSim's best 10; of these with 128 numbers, 0.99.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from chiasm.pipeline.encoders import Ragged
from chiasm.pipeline.errors import CollectionError

SUFFIX = "_proposals"
NEAREST = 3  # partitions that a query's token is shared among, by how near they are
_AT_ONCE = 256  # documents whose partitions are in memory: 16 MB of 128 centres of 128 numbers


def proposal_column(modality: str) -> str:
    """The name of the vectors made of a modality's tokens, in segments and among trained files."""
    return f"{modality}{SUFFIX}"


@dataclass(frozen=True, eq=False)
class Proposals:
    """K centres of width W; vectors of D numbers, of which the last makes a document's unit.

    centres (K, W). project_documents (K, W, D - 1), project_queries (K, W, D - 1). mean (D - 1,),
    of projected documents. length (1,): of the longest document. scatter (1,): the mean square of
    the distance between a query's token and its centre. All float32.
    """

    centres: np.ndarray
    project_documents: np.ndarray
    project_queries: np.ndarray
    mean: np.ndarray
    length: np.ndarray
    scatter: np.ndarray

    @property
    def width(self) -> int:
        """Of a token's vector."""
        return self.centres.shape[1]

    def documents(self, tokens: Ragged) -> np.ndarray:
        """B matrices of tokens (T_i, W) -> (B, D) float32 unit rows; zero where there is no token.

        Inner products with a query's are in the order of MaxSim, as far as it is estimated: the
        last number fills a shorter document's up to length 1 and meets the query's zero."""
        found = np.zeros((len(tokens.lengths), len(self.mean) + 1), np.float32)
        project = self.project_documents.reshape(-1, len(self.mean))
        having = np.flatnonzero(tokens.lengths)
        starts = np.cumsum(tokens.lengths) - tokens.lengths
        for first in range(0, len(having), _AT_ONCE):
            some = having[first : first + _AT_ONCE]
            items = [tokens.values[starts[n] : starts[n] + tokens.lengths[n]] for n in some]
            projected = winners(items, self.centres).reshape(len(some), -1) @ project - self.mean
            projected /= self.length
            squares = np.einsum("nd,nd->n", projected, projected)
            # One longer than all that it was fitted to is shortened.
            projected /= np.sqrt(np.maximum(squares, 1))[:, None]
            found[some, :-1] = projected
            found[some, -1] = np.sqrt(np.maximum(1 - squares, 0))
        return found

    def query(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens (T, W) of a query -> (D,) float32, its last number 0; of several parts of a query
        the sum of these is that of the query."""
        found = np.zeros(len(self.mean) + 1, np.float32)
        gaps = distances(tokens, self.centres)
        count = min(NEAREST, len(self.centres))
        parts = np.argpartition(gaps, count - 1, axis=1)[:, :count]
        gaps = np.take_along_axis(gaps, parts, axis=1)
        shares = np.exp((gaps.min(axis=1, keepdims=True) - gaps) / self.scatter)
        shares /= shares.sum(axis=1, keepdims=True)
        touched, places = np.unique(parts, return_inverse=True)
        weights = np.zeros((len(touched), len(tokens)), np.float32)
        rows = np.broadcast_to(np.arange(len(tokens))[:, None], parts.shape)
        weights[places.reshape(parts.shape), rows] = shares
        project = self.project_queries[touched].reshape(-1, len(self.mean))
        found[:-1] = (weights @ tokens).reshape(-1) @ project
        return found

    def to_bytes(self) -> bytes:
        """The arrays as a safetensors file; the projections in float16."""
        from safetensors.numpy import save

        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("project_documents", "project_queries"):
            arrays[name] = arrays[name].astype("<f2")
        return save({name: np.ascontiguousarray(value) for name, value in arrays.items()})

    @classmethod
    def from_bytes(cls, data: bytes, dim: int, where: str, do: str) -> Proposals:
        """Raises CollectionError for arrays that do not fit each other, or vectors of `dim`."""
        from safetensors.numpy import load

        def refuse(found: str) -> CollectionError:
            return CollectionError(where, expected="what proposes rows", found=found, do=do)

        try:
            arrays = {name: value.astype(np.float32) for name, value in load(data).items()}
        except Exception as error:  # safetensors raises its own, whose type it does not export
            raise refuse(str(error)) from error
        centres = arrays.get("centres", np.empty(0)).shape
        expected = {
            "centres": centres,
            "project_documents": (*centres, dim - 1),
            "project_queries": (*centres, dim - 1),
            "mean": (dim - 1,),
            "length": (1,),
            "scatter": (1,),
        }
        found = {name: value.shape for name, value in arrays.items()}
        if len(centres) != 2 or found != expected:
            raise refuse(", ".join(f"{name} {shape}" for name, shape in sorted(found.items())))
        return cls(**arrays)


def winners(items: list[np.ndarray], centres: np.ndarray) -> np.ndarray:
    """Of each item (T_i, W) the token with the greatest inner product with each centre (K, W):
    (B, K, W) float32."""
    found = np.empty((len(items), *centres.shape), np.float32)
    for number, item in enumerate(items):
        tokens = np.asarray(item, np.float32)
        found[number] = tokens[(tokens @ centres.T).argmax(axis=0)]
    return found


def distances(tokens: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The squared distance between each token and each centre, (T, K) float32."""
    own = np.einsum("tw,tw->t", tokens, tokens)[:, None]
    found = own + np.einsum("kw,kw->k", centres, centres) - 2 * (tokens @ centres.T)
    return np.maximum(found, 0)

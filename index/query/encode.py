"""Queries -> vectors, by the collection's own encoder.

Words and pictures are encoded in batches, each picture by the same decoder that read the shards. A
query with both is the normalised mean of its two vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from chiasm.index.queries import PictureSource, Query
from chiasm.index.query.query_picture import encoded_picture, source_name
from chiasm.pipeline.encoders import Encoder, mean_of, unit
from chiasm.pipeline.errors import Undecodable, UsageError
from chiasm.pipeline.images import DecodeSettings, decode

T = TypeVar("T")

BATCH = 64  # texts or pictures encoded at once


def encode_queries(queries: Sequence[Query], encoder: Encoder | None, dim: int) -> np.ndarray:
    """One unit vector a query: (Q, dim) float32.

    encoder may be None where every query brings its vector. Raises UsageError for a vector of
    another width and for a picture that cannot be read.
    """
    xq = np.zeros((len(queries), dim), dtype=np.float32)
    for number, query in enumerate(queries):
        if query.vector is not None:
            xq[number] = _given(query.vector, dim)
    worded = [number for number, query in enumerate(queries) if query.words]
    pictured = [
        (number, query.image) for number, query in enumerate(queries) if query.image is not None
    ]
    if encoder is None:
        assert not worded and not pictured
        return xq
    for some in _batches(worded):
        xq[some] = encoder.encode_texts([queries[number].words for number in some])
    for some in _batches(pictured):
        vectors = encoder.encode_images([pixels_of(source, encoder) for _, source in some])
        for (number, _), vector in zip(some, vectors, strict=True):
            words = xq[number][None]
            xq[number] = mean_of(vector[None], words)[0] if queries[number].words else vector
    return xq


def _batches(items: list[T]) -> list[list[T]]:
    return [items[start : start + BATCH] for start in range(0, len(items), BATCH)]


def _given(vector: np.ndarray, dim: int) -> np.ndarray:
    vector = np.asarray(vector, dtype=np.float32)
    if vector.shape != (dim,) or not np.isfinite(vector).all() or not vector.any():
        raise UsageError(
            "query vector",
            expected=f"{dim} finite numbers, not all zero",
            found=f"shape {vector.shape}" if vector.shape != (dim,) else "zeros, NaN or infinity",
        )
    return unit(vector[None])[0]


def pixels_of(source: PictureSource, encoder: Encoder) -> np.ndarray:
    """What the encoder takes of a query's picture; UsageError where that cannot be read."""
    try:
        decoded = decode(encoded_picture(source), DecodeSettings(), encoder.image_size)
    except Undecodable as error:
        found = f"{error.reason}: {error.detail}" if error.detail else error.reason
        raise UsageError(source_name(source), expected="a picture", found=found) from error
    return encoder.preprocess(decoded.image)

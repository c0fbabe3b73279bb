"""Queries -> vectors, by the collection's own encoder.

Words and pictures are encoded in batches, each picture by the same decoder that read the shards. A
query with both is what the encoder's `encode_joint_queries` makes of the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from chiasm.index.queries import PictureSource, Query
from chiasm.index.query.query_picture import encoded_picture, source_name
from chiasm.pipeline.encoders import Encoded, Encoder, Preprocessor, require_modality, unit
from chiasm.pipeline.errors import Undecodable, UsageError
from chiasm.pipeline.images import DecodeSettings, decode
from chiasm.pipeline.records import IMAGE, TEXT

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
    texts: dict[int, Encoded] = {}
    for some in _batches(worded):
        rows = encoder.encode_queries(TEXT, [_text(queries[number], encoder) for number in some])
        xq[some] = rows.vectors
        texts |= {number: rows.take(np.array([row])) for row, number in enumerate(some)}
    for some in _batches(pictured):
        rows = encoder.encode_queries(IMAGE, [pixels_of(source, encoder) for _, source in some])
        for row, (number, _) in enumerate(some):
            image = rows.take(np.array([row]))
            if number in texts:
                parts = {IMAGE: image, TEXT: texts[number]}
                xq[number] = encoder.encode_joint_queries(parts)[0]
            else:
                xq[number] = image.vectors[0]
    return xq


def _text(query: Query, encoder: Encoder) -> Any:
    require_modality(encoder, TEXT)
    try:
        return encoder.preprocess(TEXT, query.words)
    except Undecodable as error:
        raise UsageError(
            "the query's text", expected="one that the encoder takes", found=str(error)
        ) from error


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


def pixels_of(source: PictureSource, encoder: Preprocessor) -> Any:
    """What the encoder takes of a query's picture; UsageError where that cannot be read."""
    require_modality(encoder, IMAGE)
    side = encoder.modalities[IMAGE].side
    try:
        decoded = decode(encoded_picture(source), DecodeSettings(), side)
        return encoder.preprocess(IMAGE, np.asarray(decoded.image))
    except Undecodable as error:
        found = f"{error.reason}: {error.detail}" if error.detail else error.reason
        raise UsageError(source_name(source), expected="a picture", found=found) from error

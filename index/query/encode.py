"""Queries -> vectors, by the collection's own encoder.

Words and pictures are encoded in batches, each picture by the same decoder that read the shards. A
query with both is what the encoder's `encode_joint_queries` makes of the two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from chiasm.index.queries import PictureSource, Query
from chiasm.index.query.query_picture import encoded_picture, source_name
from chiasm.pipeline.encoders import (
    JOINT,
    Encoded,
    Encoder,
    Fault,
    Preprocessor,
    probe_encoder,
    require_modality,
    require_unit_vectors,
    unit,
)
from chiasm.pipeline.errors import Undecodable, UsageError
from chiasm.pipeline.images import DecodeSettings, decode
from chiasm.pipeline.records import IMAGE, TEXT

T = TypeVar("T")
Encode = Callable[[str, Sequence[Any]], Encoded]

BATCH = 64  # texts or pictures encoded at once


def encode_queries(queries: Sequence[Query], encoder: Encoder | None, dim: int) -> np.ndarray:
    """One unit vector a query: (Q, dim) float32.

    encoder may be None where every query brings its vector. Raises UsageError for a vector of
    another width, for a picture that cannot be read, and for a query that the encoder does not
    take.
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
        items = [text_of(queries[number].words, encoder) for number in some]
        names = [str(queries[number]) for number in some]
        rows = encode_each(encoder.encode_queries, TEXT, items, names, encoder)
        for row, number in zip(rows, some, strict=True):
            xq[number], texts[number] = row.vectors[0], row
    for some in _batches(pictured):
        items = [pixels_of(source, encoder) for _, source in some]
        names = [source_name(source) for _, source in some]
        rows = encode_each(encoder.encode_queries, IMAGE, items, names, encoder)
        for image, (number, _) in zip(rows, some, strict=True):
            if number in texts:
                parts = {IMAGE: image, TEXT: texts[number]}
                xq[number] = _joint(parts, queries[number], encoder)
            else:
                xq[number] = image.vectors[0]
    return xq


def encode_each(
    encode: Encode, modality: str, items: Sequence[Any], names: Sequence[str], encoder: Encoder
) -> list[Encoded]:
    """Each item, encoded together by a method of the encoder. Where that fails they are encoded one
    by one, and UsageError says the name of the first that has no vector; EncoderError where the
    model itself is at fault."""

    def rows_of(some: Sequence[Any]) -> list[Encoded]:
        encoded = encode(modality, some)
        require_unit_vectors(encoded.vectors, len(some), encoder.dims[modality], modality)
        return [encoded.take(np.array([row])) for row in range(len(some))]

    try:
        return rows_of(items)
    except Exception:  # noqa: BLE001  models raise anything; what it was is found below
        probe_encoder(encoder)
    rows = []
    for item, name in zip(items, names, strict=True):
        try:
            rows += rows_of([item])
        except Exception as error:
            raise query_refused(name, encoder, Fault.of(error, modality)) from error
    return rows


def _joint(parts: dict[str, Encoded], query: Query, encoder: Encoder) -> np.ndarray:
    """The joint vector (D,) of one query."""
    try:
        joint = encoder.encode_joint_queries(parts)
        return require_unit_vectors(joint, 1, encoder.dims[JOINT], JOINT)[0]
    except Exception as error:
        raise query_refused(str(query), encoder, Fault.of(error, JOINT)) from error


def query_refused(name: str, model: Preprocessor, fault: Fault) -> UsageError:
    """The error for a query, called `name`, that a model does not take."""
    small = fault.reason == "out_of_memory"
    return UsageError(
        name,
        expected=f"a query that {model.name} takes",
        found=str(fault),
        do="free memory, or ask by less" if small else "ask in other words or by another picture",
    )


def text_of(words: str, model: Preprocessor) -> Any:
    """What the model takes of a query's text; UsageError where it takes none, or not this one."""
    require_modality(model, TEXT)
    try:
        return model.preprocess(TEXT, words)
    except Exception as error:  # Undecodable, by its own word, or anything
        raise query_refused(f'"{words}"', model, Fault.of(error, TEXT)) from error


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


def pixels_of(source: PictureSource, model: Preprocessor) -> Any:
    """What the model takes of a query's picture; UsageError where that cannot be read, or where
    the model does not take it."""
    require_modality(model, IMAGE)
    side = model.modalities[IMAGE].side
    try:
        decoded = decode(encoded_picture(source), DecodeSettings(), side)
    except Undecodable as error:
        found = f"{error.reason}: {error.detail}" if error.detail else error.reason
        raise UsageError(source_name(source), expected="a picture", found=found) from error
    try:
        return model.preprocess(IMAGE, np.asarray(decoded.image))
    except Exception as error:
        raise query_refused(source_name(source), model, Fault.of(error, IMAGE)) from error

"""Queries -> vectors, by the collection's own encoder.

Words and pictures are encoded in batches, each picture by the same decoder that read the shards. A
query with both is the normalised mean of its two vectors.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from index.results import PictureSource, Query
from pipeline.encoders import Encoder, mean_of, unit
from pipeline.errors import UsageError
from pipeline.images import DecodeSettings, Undecodable, decode

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
    pictured = [number for number, query in enumerate(queries) if query.image is not None]
    if encoder is None:
        assert not worded and not pictured
        return xq
    for some in _batches(worded):
        xq[some] = encoder.encode_texts([queries[number].words for number in some])
    for some in _batches(pictured):
        pixels = [_pixels(queries[number].image, encoder) for number in some]
        vectors = encoder.encode_images(pixels)
        for number, vector in zip(some, vectors, strict=True):
            both = queries[number].words != ""
            xq[number] = mean_of(vector[None], xq[number][None])[0] if both else vector
    return xq


def _batches(numbers: list[int]) -> list[list[int]]:
    return [numbers[start : start + BATCH] for start in range(0, len(numbers), BATCH)]


def _given(vector: np.ndarray, dim: int) -> np.ndarray:
    vector = np.asarray(vector, dtype=np.float32)
    if vector.shape != (dim,) or not np.isfinite(vector).all() or not vector.any():
        raise UsageError(
            "query vector",
            expected=f"{dim} finite numbers, not all zero",
            found=f"shape {vector.shape}" if vector.shape != (dim,) else "zeros, NaN or infinity",
        )
    return unit(vector[None])[0]


def _pixels(picture: PictureSource | None, encoder: Encoder) -> np.ndarray:
    name = str(picture) if isinstance(picture, str | Path) else "query picture"
    try:
        decoded = decode(_encoded(picture, name), DecodeSettings(), encoder.image_size)
    except Undecodable as error:
        found = f"{error.reason}: {error.detail}" if error.detail else error.reason
        raise UsageError(name, expected="a picture", found=found) from error
    return encoder.preprocess(decoded.image)


def _encoded(picture: PictureSource | None, name: str) -> bytes:
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, Image.Image):
        # Through a file, so that alpha, palettes and rotation are treated as they were in the
        # shards.
        file = io.BytesIO()
        ready = picture if picture.mode in _PNG_MODES else picture.convert("RGB")
        ready.save(file, "PNG", compress_level=0, exif=picture.getexif())
        return file.getvalue()
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise UsageError(
            name, expected="a picture's file", found=error.strerror or str(error)
        ) from error


_PNG_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}

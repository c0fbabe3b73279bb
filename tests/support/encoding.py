"""Short ways to ask an encoder for vectors of pictures, texts and pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image


def preprocess(encoder: Any, image: Image.Image | np.ndarray) -> Any:
    """One RGB picture -> what the encoder takes of it."""
    return encoder.preprocess("image", np.asarray(image))


def encode_images(encoder: Any, pixels: Sequence[Any]) -> np.ndarray:
    """B outputs of `preprocess` -> (B, D) float32."""
    return encoder.encode("image", pixels).vectors


def encode_texts(encoder: Any, texts: Sequence[str]) -> np.ndarray:
    """B texts -> (B, D) float32."""
    return encoder.encode("text", [encoder.preprocess("text", text) for text in texts]).vectors


def encode_joint(encoder: Any, pixels: Sequence[Any], texts: Sequence[str]) -> np.ndarray:
    """B pairs -> (B, D) float32."""
    return encoder.encode_joint(
        {"image": encoder.encode("image", pixels), "text": encoder.encode("text", texts)}
    )


def match_rows(matcher: Any, pixels: Sequence[Any], texts: Sequence[str]) -> np.ndarray:
    """Picture i with text i -> (B,) float32."""
    rows = np.arange(len(texts))
    return matcher.match(("image", pixels), ("text", texts), np.stack([rows, rows], axis=1))


def mean_of(image: np.ndarray, text: np.ndarray) -> np.ndarray:
    """The normalised mean of unit vectors (B, D)."""
    mean = image + text
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)

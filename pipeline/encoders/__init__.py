"""Encoders: pixels or texts -> unit vectors. A dict of loaders, one protocol, one public function.

A name is `family` or `family:model`: `pocket`, `hf:google/siglip2-base-patch16-224`,
`st:Qwen/Qwen3-VL-Embedding-2B`. Loading one family imports only what that family needs, so that
`pocket` costs no transformers import.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.pretrained import EncoderSettings

FAMILIES = {  # family -> module with `load(model: str, settings: EncoderSettings) -> Encoder`
    "pocket": "chiasm.pipeline.encoders.pocket",
    "hf": "chiasm.pipeline.encoders.huggingface",
    "st": "chiasm.pipeline.encoders.sentence_transformer",
    "two-tower": "chiasm.pipeline.encoders.two_tower",
}


class Encoder(Protocol):
    """What the write path and the read path ask of a model.

    fingerprint: hex digest of weights, tokenizer and preprocessing: same fingerprint, same space.
    image_size: side in pixels of what the model sees, or None where it takes any size.
    precision and device: what was chosen, recorded beside the fingerprint, never part of it.
    preprocessing: the whole of it in words and numbers, as stored in collection.json.
    """

    name: str
    dim: int
    fingerprint: str
    image_size: int | None
    precision: str
    device: str
    preprocessing: dict[str, Any]

    def preprocess(self, image: Image.Image) -> np.ndarray:
        """One RGB picture -> what `encode_images` takes: uint8 (3, S, S), or (H, W, 3) where
        image_size is None. Thread safe; runs in the decode threads."""
        ...

    def encode_images(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """B outputs of `preprocess` -> (B, D) float32, unit rows."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """B texts -> (B, D) float32, unit rows."""
        ...

    def encode_pairs(
        self,
        image: np.ndarray,
        text: np.ndarray,
        pixels: Sequence[np.ndarray],
        texts: Sequence[str],
    ) -> np.ndarray:
        """B pairs, given their (B, D) image and text vectors and what those were made of -> (B, D)
        float32 unit joint vectors. `mean_of` below, for encoders without a learned fusion."""
        ...


@runtime_checkable
class Matcher(Encoder, Protocol):
    """An encoder that can also look at a text and a picture together."""

    def match_pairs(self, pixels: Sequence[np.ndarray], texts: Sequence[str]) -> np.ndarray:
        """B outputs of `preprocess` and B texts -> (B,) float32: the log odds that text i tells of
        picture i."""
        ...


def require_matcher(encoder: Encoder) -> Matcher:
    """The encoder, if it can match; UsageError for one that makes vectors only."""
    if isinstance(encoder, Matcher):
        return encoder
    raise UsageError(
        f"encoder {encoder.name}",
        expected="one that matches words with pictures",
        found="one that makes vectors only",
        do="take pocket, or a model that chiasm train made",
    )


def mean_of(image: np.ndarray, text: np.ndarray) -> np.ndarray:
    """The normalised mean of unit vectors: (B, D), (B, D) float32 -> (B, D) float32 unit rows."""
    return unit(image + text)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to unit length: (B, D) -> (B, D) float32; a zero row stays zero."""
    vectors = np.asarray(vectors, dtype=np.float32)
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)


def split_encoder_name(name: str) -> tuple[str, str]:
    """`family:model` -> (family, model), loading nothing; UsageError for an unknown family."""
    family, _, model = name.partition(":")
    if family not in FAMILIES:
        raise UsageError(
            f"encoder {name!r}",
            expected="one of " + ", ".join(_usages()),
            do="see chiasm embed --help",
        )
    return family, model


def load_encoder(name: str, settings: EncoderSettings | None = None) -> Encoder:
    """The encoder called `name`; UsageError for an unknown family, EncoderError for a bad model."""
    family, model = split_encoder_name(name)
    module = importlib.import_module(FAMILIES[family])
    return module.load(model, settings or EncoderSettings())


def _usages() -> list[str]:
    shown = {"pocket": "pocket", "two-tower": "two-tower:DIR"}
    return [shown.get(family, f"{family}:ID_OR_DIR") for family in FAMILIES]

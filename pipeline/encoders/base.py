"""What encoders and matchers share: the defaults of `Encoder`, a model's folder, unit vectors and
their mean, and the errors for a model that does not take a modality or does not match."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, cast

import numpy as np

from chiasm.pipeline.encoders.protocols import (
    JOINT,
    Array,
    Encoded,
    Encoder,
    Matcher,
    MatchingEncoder,
    Preprocessor,
)
from chiasm.pipeline.errors import EncoderError, UsageError
from chiasm.pipeline.records import IMAGE, TEXT


class BaseEncoder:
    """The defaults of `Encoder`: queries are encoded as rows are, a joint vector is the normalised
    mean, an item's cost is its size as float32."""

    @property
    def joint_is_mean(self) -> bool:
        """Whether a joint vector is the mean of its parts: then a row need not have all of them,
        and they can be weighted."""
        return type(self).encode_joint is BaseEncoder.encode_joint

    def cost(self, modality: str, item: Any) -> int:
        if isinstance(item, np.ndarray):
            return 4 * item.size
        return 4 * len(item)

    def encode(self, modality: str, items: Sequence[Any]) -> Encoded:
        raise NotImplementedError

    def encode_queries(self, modality: str, items: Sequence[Any]) -> Encoded:
        return self.encode(modality, items)

    def encode_joint(self, parts: Mapping[str, Encoded]) -> Array:
        return normalized_mean([part.vectors for part in parts.values()])

    def encode_joint_queries(self, parts: Mapping[str, Encoded]) -> Array:
        return normalized_mean([part.vectors for part in parts.values()])


def earlier_fingerprints(encoder: Encoder) -> Mapping[str, str]:
    """Fingerprints that the same model had where its rows were made in an earlier way, and what
    differs about that: `prompts`. Such rows can be searched with its queries. It is an optional
    attribute of encoders."""
    return getattr(encoder, "earlier_fingerprints", {})


def token_dims(encoder: Preprocessor) -> dict[str, int]:
    """The width of a token's vector by modality, of an encoder that gives tokens, its `token_dims`;
    {} of another."""
    return dict(getattr(encoder, "token_dims", {}))


def joins(encoder: Encoder, modalities: Set[str]) -> bool:
    """Whether a row of these modalities has a joint vector: of all that the encoder takes or, where
    that vector is a mean, of two or more of them that have a weight."""
    if JOINT not in encoder.dims:
        return False
    if not getattr(encoder, "joint_is_mean", False):  # which an encoder of others need not have
        return modalities == encoder.modalities.keys()
    weights: Mapping[str, float] = getattr(encoder, "joint_weights", {})
    least = min(2, len(encoder.modalities))
    return len(modalities) >= least and any(weights.get(name, 1) for name in modalities)


def model_folder(family: str, model: str) -> Path:
    """The folder after the colon of `family:model`; EncoderError for none, and for a URL."""
    if not model or "://" in model:
        raise EncoderError(
            f"encoder {family}",
            expected="a folder after the colon",
            found="a URL" if model else "none",
            do="copy the folder to this machine, and name the copy" if model else "",
        )
    return Path(os.path.expanduser(model))


def normalized_mean(vectors: Sequence[Array]) -> Array:
    """The normalised mean of unit vectors: M times (B, D) float32 -> (B, D) float32, unit rows."""
    total = vectors[0]
    for entry in vectors[1:]:
        total = total + entry
    return unit(total)


def unit(vectors: Array) -> Array:
    """Rows scaled to unit length: (B, D) -> (B, D) float32; a zero row stays zero, one with NaN or
    infinity has NaN."""
    with np.errstate(all="ignore"):
        vectors = np.asarray(vectors, dtype=np.float32)
        norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
        return vectors / np.where(norms == 0, np.float32(1), norms)


def require_modality(
    encoder: Preprocessor,
    modality: str,
    *,
    do: str = "query with one of these, or embed with another encoder",
) -> None:
    """UsageError where the model does not take that modality; do: its advice."""
    if modality not in encoder.modalities:
        raise UsageError(
            f"encoder {encoder.name}",
            expected=f"one that takes {modality}",
            found="one for " + ", ".join(encoder.modalities),
            do=do,
        )


def require_matcher(encoder: Encoder) -> MatchingEncoder:
    """The encoder, if it can match; UsageError for one that makes vectors only."""
    if isinstance(encoder, Matcher):
        return cast(MatchingEncoder, encoder)
    raise vectors_only(encoder.name)


def vectors_only(name: str) -> UsageError:
    """The error for an encoder that cannot match."""
    return UsageError(
        f"encoder {name}",
        expected="one that matches words with pictures",
        found="one that makes vectors only",
        do="take pocket, a model that chiasm train made, or hf: of a BLIP for retrieval",
    )


def image_and_text(
    model: Matcher,
    a: tuple[str, Sequence[Any]],
    b: tuple[str, Sequence[Any]],
    pairs: Array,
) -> tuple[Sequence[Any], Sequence[Any], Array]:
    """The arguments of `match` as pictures, texts and pairs (P, 2) int64 of picture and text;
    UsageError where they are others."""
    if {a[0], b[0]} != {IMAGE, TEXT}:
        raise UsageError(
            f"encoder {model.name}",
            expected="pictures and texts to match",
            found=f"{a[0]} and {b[0]}",
        )
    pairs = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
    return (a[1], b[1], pairs) if a[0] == IMAGE else (b[1], a[1], pairs[:, ::-1])

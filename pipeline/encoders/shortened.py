"""The option `dims`: the first numbers of each vector, made unit again.

Models that learned it (Matryoshka representation learning, Kusupati et al., 2022) put what matters
most first; others lose more. The joint vector is made of whole vectors, then cut.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from chiasm.pipeline.encoders.base import unit
from chiasm.pipeline.encoders.protocols import Array, Encoded, Encoder, Matcher
from chiasm.pipeline.errors import EncoderError, UsageError


def shortened(encoder: Encoder, dims: int) -> Encoder:
    """The encoder with vectors of `dims` numbers: itself where it has so many. UsageError where it
    has fewer, EncoderError for one that gives a vector for each token."""
    least = min(encoder.dims.values())
    if dims > least:
        raise UsageError(
            f"encoder.dims={dims}",
            expected=f"at most {least}, the width of the vectors of {encoder.name}",
        )
    if set(encoder.dims.values()) == {dims}:
        return encoder
    if isinstance(encoder, Matcher):
        return ShortenedMatchingEncoder(encoder, dims)
    return ShortenedEncoder(encoder, dims)


class ShortenedEncoder:
    """See the protocol `chiasm.pipeline.encoders.Encoder`."""

    def __init__(self, encoder: Encoder, dims: int) -> None:
        self._encoder, self._width = encoder, dims
        self.name, self.modalities = encoder.name, encoder.modalities
        self.precision, self.device = encoder.precision, encoder.device
        self.dims = dict.fromkeys(encoder.dims, dims)
        self.joint_is_mean = getattr(encoder, "joint_is_mean", False)
        self.joint_weights = getattr(encoder, "joint_weights", {})
        self.preprocessing = {**encoder.preprocessing, "dims": dims}
        self.fingerprint = hashlib.blake2b(
            f"{encoder.fingerprint} dims {dims}".encode(), digest_size=16
        ).hexdigest()

    def preprocess(self, modality: str, raw: Any) -> Any:
        return self._encoder.preprocess(modality, raw)

    def cost(self, modality: str, item: Any) -> int:
        return self._encoder.cost(modality, item)

    def encode(self, modality: str, items: Sequence[Any]) -> Encoded:
        return self._cut(self._encoder.encode(modality, items))

    def encode_queries(self, modality: str, items: Sequence[Any]) -> Encoded:
        return self._cut(self._encoder.encode_queries(modality, items))

    def encode_joint(self, parts: Mapping[str, Encoded]) -> Array:
        return self._joint(self._encoder.encode_joint, parts)

    def encode_joint_queries(self, parts: Mapping[str, Encoded]) -> Array:
        return self._joint(self._encoder.encode_joint_queries, parts)

    def _cut(self, whole: Encoded) -> Encoded:
        if whole.tokens is not None:
            raise EncoderError(
                f"encoder {self.name}",
                expected="one vector an item, which encoder.dims cuts",
                found="a vector for each token",
                do="leave encoder.dims out",
            )
        vectors = unit(whole.vectors[:, : self._width])
        return Encoded(vectors, tokens_cut=whole.tokens_cut, state=whole)

    def _joint(
        self, encode: Callable[[Mapping[str, Encoded]], Array], parts: Mapping[str, Encoded]
    ) -> Array:
        whole = {modality: _whole(part) for modality, part in parts.items()}
        return unit(encode(whole)[:, : self._width])


class ShortenedMatchingEncoder(ShortenedEncoder):
    """The same for one that also matches, which does not depend on its vectors' width."""

    _encoder: Any

    def match(
        self, a: tuple[str, Sequence[Any]], b: tuple[str, Sequence[Any]], pairs: Array
    ) -> Array:
        return self._encoder.match(a, b, pairs)


def _whole(part: Encoded) -> Encoded:
    """What the encoder itself gave for a part."""
    if not isinstance(part.state, Encoded):
        raise TypeError("expected what `encode` or `encode_queries` gave")
    return part.state

"""The option `joint_weights`: modalities that count more than others in the mean that is a joint
vector, of rows and of queries alike.

Only the joint vector of an encoder that makes it as the mean of its parts has weights. A fusion
that was learned has its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, cast

from chiasm.pipeline.encoders.base import unit
from chiasm.pipeline.encoders.protocols import JOINT, Array, Encoded, Encoder
from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.pretrained import parse_weights

OPTION = "encoder.joint_weights"


def weighted(encoder: Encoder, given: str) -> Encoder:
    """The encoder with a weighted joint vector; itself where all weights are the same. given: such
    as `image=2,text=1`; a modality that is not named weighs 1. UsageError for a name that is none
    of its modalities, for weights that are all 0, and for an encoder whose joint vector is no
    mean."""
    if JOINT not in encoder.dims or not getattr(encoder, "joint_is_mean", False):
        found = "none" if JOINT not in encoder.dims else "a fusion of its own"
        raise UsageError(
            f"{OPTION}={given}",
            expected=f"an encoder whose joint vector is a mean, which is {encoder.name}'s not",
            found=found,
            do="leave it out",
        )
    weights = parse_weights(given)
    unknown = [name for name in weights if name not in encoder.modalities]
    if unknown:
        raise UsageError(
            f"{OPTION}={given}",
            expected=f"modalities of {encoder.name}: {', '.join(encoder.modalities)}",
            found=unknown[0],
        )
    weights = {name: weights.get(name, 1.0) for name in encoder.modalities}
    if not any(weights.values()):
        raise UsageError(f"{OPTION}={given}", expected="a weight above 0", found="none")
    if len(set(weights.values())) == 1:
        return encoder
    return cast(Encoder, WeightedEncoder(encoder, weights))


class WeightedEncoder:
    """See the protocol `chiasm.pipeline.encoders.Encoder`. What is not of its joint vector is the
    encoder's own, matching and explanations with it."""

    def __init__(self, encoder: Encoder, weights: Mapping[str, float]) -> None:
        # Here and not by `__getattr__`, which `isinstance` of a protocol does not ask from Python
        # 3.12 on.
        for name in dir(encoder):
            if not name.startswith("_") and not hasattr(type(self), name):
                self.__dict__[name] = getattr(encoder, name)
        self.joint_weights = weights
        self.earlier_fingerprints: Mapping[str, str] = {}  # rows of before had no weights
        # Weights of the same ratios make the same vectors.
        largest = max(weights.values())
        ratios = {name: weight / largest for name, weight in sorted(weights.items())}
        rounded = {name: float(f"{ratio:.9g}") for name, ratio in ratios.items()}
        self.preprocessing: dict[str, Any] = {**encoder.preprocessing, "joint_weights": rounded}
        self.fingerprint = hashlib.blake2b(
            f"{encoder.fingerprint} joint_weights {rounded}".encode(), digest_size=16
        ).hexdigest()

    def encode_joint(self, parts: Mapping[str, Encoded]) -> Array:
        """The weighted mean of two or more parts, one of which has a weight; UsageError else."""
        weights = {name: self.joint_weights[name] for name in parts}
        if not any(weights.values()):
            raise UsageError(
                OPTION, expected=f"a weight above 0 for {' or '.join(parts)}", found="0 for each"
            )
        largest = max(weights.values())
        total = sum(weights[name] / largest * part.vectors for name, part in parts.items())
        return unit(cast(Array, total))

    def encode_joint_queries(self, parts: Mapping[str, Encoded]) -> Array:
        """The same of queries."""
        return self.encode_joint(parts)

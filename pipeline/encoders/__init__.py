"""Encoders: items of a modality -> unit vectors of one space; matchers: pairs of items -> log
odds."""

from chiasm.pipeline.encoders.base import (
    BaseEncoder,
    normalized_mean,
    require_matcher,
    require_modality,
    unit,
)
from chiasm.pipeline.encoders.protocols import (
    JOINT,
    Encoded,
    Encoder,
    Input,
    Matcher,
    MatchingEncoder,
    Preprocessor,
    Ragged,
)
from chiasm.pipeline.encoders.registry import (
    ENCODERS,
    load_encoder,
    load_matcher,
    register_encoder,
    split_encoder_name,
)
from chiasm.pipeline.pretrained import EncoderSettings

__all__ = [
    "ENCODERS",
    "JOINT",
    "BaseEncoder",
    "Encoded",
    "Encoder",
    "EncoderSettings",
    "Input",
    "Matcher",
    "MatchingEncoder",
    "Preprocessor",
    "Ragged",
    "load_encoder",
    "load_matcher",
    "normalized_mean",
    "register_encoder",
    "require_matcher",
    "require_modality",
    "split_encoder_name",
    "unit",
]

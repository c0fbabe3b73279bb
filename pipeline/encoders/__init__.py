"""Encoders: items of a modality -> unit vectors of one space; matchers: pairs of items -> log
odds; answerers: a picture, a text or both -> another text, or a picture."""

from chiasm.pipeline.encoders.answerers import (
    LANGUAGES,
    TASKS,
    Answerer,
    GenerateSettings,
    Reply,
    Request,
    Sampling,
    answer_batch,
    require_task,
)
from chiasm.pipeline.encoders.base import (
    BaseEncoder,
    normalized_mean,
    require_matcher,
    require_modality,
    unit,
)
from chiasm.pipeline.encoders.faults import (
    ENCODE_REASONS,
    Fault,
    describe,
    is_out_of_memory,
    match_each,
    require_unit_vectors,
)
from chiasm.pipeline.encoders.probe import probe_encoder, probe_matcher
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
    ANSWERERS,
    ENCODERS,
    load_answerer,
    load_encoder,
    load_matcher,
    register_encoder,
    split_encoder_name,
)
from chiasm.pipeline.pretrained import EncoderSettings

__all__ = [
    "ANSWERERS",
    "ENCODERS",
    "ENCODE_REASONS",
    "JOINT",
    "LANGUAGES",
    "TASKS",
    "Answerer",
    "BaseEncoder",
    "Encoded",
    "Encoder",
    "EncoderSettings",
    "Fault",
    "GenerateSettings",
    "Input",
    "Matcher",
    "MatchingEncoder",
    "Preprocessor",
    "Ragged",
    "Reply",
    "Request",
    "Sampling",
    "answer_batch",
    "describe",
    "is_out_of_memory",
    "load_answerer",
    "load_encoder",
    "load_matcher",
    "match_each",
    "normalized_mean",
    "probe_encoder",
    "probe_matcher",
    "register_encoder",
    "require_matcher",
    "require_modality",
    "require_task",
    "require_unit_vectors",
    "split_encoder_name",
    "unit",
]

"""`hf:ID_OR_DIR`: dual encoders and matchers of transformers, those of huggingface_kinds.py.

Pictures follow the model's own image processor (pretrained/image_processing.py), texts its
tokenizer (huggingface_texts.py). Weights are in the chosen precision; vectors come back in float32.
All is read from one folder, and no code in it is run.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import torch

from chiasm.pipeline.encoders import clap
from chiasm.pipeline.encoders.base import vectors_only
from chiasm.pipeline.encoders.huggingface_encoder import (
    ExplainingHuggingFaceEncoder,
    HuggingFaceEncoder,
    Parts,
)
from chiasm.pipeline.encoders.huggingface_folder import WEIGHTS, load_network, load_pixels
from chiasm.pipeline.encoders.huggingface_kinds import (
    KINDS,
    MATCHERS,
    Kind,
    read_config,
    read_matcher_config,
    width,
)
from chiasm.pipeline.encoders.huggingface_matchers import Blip2Matcher, BlipEncoder
from chiasm.pipeline.encoders.huggingface_texts import load_tokens, most_positions
from chiasm.pipeline.encoders.probe import probe_matcher
from chiasm.pipeline.encoders.protocols import Matcher
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.pretrained.device_and_precision import (
    PRECISIONS,
    resolve_device,
    resolve_precision,
)
from chiasm.pipeline.pretrained.hub import ModelFolder, find_model


def load(model: str, settings: EncoderSettings) -> HuggingFaceEncoder | clap.ClapEncoder:
    """The encoder of a folder or a hub id; raises EncoderError or UsageError, in one line."""
    folder = find_model("hf", model, WEIGHTS)
    if folder.config().get("model_type") == clap.MODEL_TYPE:
        return clap.load(folder, settings)
    config = read_config(folder)
    kind = KINDS[config.model_type]
    dim = width(folder, config)
    parts = _parts(folder, config, kind, settings)
    if config.model_type == "blip":
        return BlipEncoder(parts, dim)
    build = ExplainingHuggingFaceEncoder if kind.explains else HuggingFaceEncoder
    return build(parts, dim)


@functools.cache
def load_matcher(model: str, settings: EncoderSettings) -> Matcher:
    """The matcher of a folder or a hub id, kept for the next query; raises EncoderError or
    UsageError, in one line."""
    folder = find_model("hf", model, WEIGHTS, use="matcher")
    config = read_matcher_config(folder)
    if config.model_type not in MATCHERS:
        raise vectors_only(folder.name)
    parts = _parts(folder, config, MATCHERS[config.model_type], settings)
    if config.model_type == "blip":
        matcher: Matcher = BlipEncoder(parts, width(folder, config))
    else:
        matcher = Blip2Matcher(parts)
    probe_matcher(matcher)
    return matcher


def _parts(folder: ModelFolder, config: Any, kind: Kind, settings: EncoderSettings) -> Parts:
    device = resolve_device(settings.device)
    precision = resolve_precision(settings.precision, device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    text = getattr(config, "qformer_config", None) or config.text_config
    vocabulary = text.vocab_size
    if getattr(config, "image_token_index", None) == vocabulary:
        vocabulary += 1  # BLIP-2's place of a picture among the words, whose id is never looked up
    tokens = load_tokens(folder, kind.padding, vocabulary, config.model_type)
    pixels = load_pixels(folder, config, kind)
    network = load_network(folder, kind.model, PRECISIONS[precision], kind.attention).to(device)
    most = most_positions(getattr(network, kind.text), text)
    length = min(tokens.length, most, kind.length or most)
    return Parts(folder, network, replace(tokens, length=length), pixels, precision, device)

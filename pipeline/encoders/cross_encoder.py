"""`st:ID_OR_DIR` as a matcher: any CrossEncoder of sentence-transformers that scores words with
pictures, such as Qwen3-VL-Reranker and jina-reranker-m0. No code of a model's own is run.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from sentence_transformers import CrossEncoder

from chiasm.pipeline.encoders.base import BaseEncoder, image_and_text, require_modality
from chiasm.pipeline.encoders.probe import probe_matcher
from chiasm.pipeline.encoders.protocols import Array, Input
from chiasm.pipeline.errors import EncoderError
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.pretrained.hub import ModelFolder
from chiasm.pipeline.pretrained.sentence_models import (
    MAX_PIXELS,
    downscaled,
    load_network,
    replace_surrogates,
)
from chiasm.pipeline.records import IMAGE, TEXT

BATCH = 8  # pairs at once: such models are large


@functools.cache
def load(model: str, settings: EncoderSettings) -> CrossEncoderMatcher:
    """The CrossEncoder of a folder or a hub id, kept for the next query; raises EncoderError or
    UsageError, in one line."""
    folder, network, _, _ = load_network(CrossEncoder, model, settings, use="reranker")
    if not network.supports("image"):
        raise EncoderError(
            folder.title,
            expected="a CrossEncoder for pictures",
            found="one for " + ", ".join(map(str, network.modalities)),
            do="take one for both, such as st:Qwen/Qwen3-VL-Reranker-2B",
        )
    matcher = CrossEncoderMatcher(folder, network)
    probe_matcher(matcher)
    return matcher


class CrossEncoderMatcher:
    """See the protocol `chiasm.pipeline.encoders.Matcher`; its scores are in the model's own
    scale, higher is nearer."""

    def __init__(self, folder: ModelFolder, network: CrossEncoder) -> None:
        self.name = folder.name
        self.fingerprint = folder.fingerprint({"largest": MAX_PIXELS})
        self.modalities = {IMAGE: Input(), TEXT: Input()}
        self._network = network

    def preprocess(self, modality: str, raw: Any) -> Any:
        """A picture uint8 (H, W, 3) -> the same, downscaled to at most MAX_PIXELS pixels. A text
        stays as it is."""
        require_modality(self, modality)
        return raw if modality == TEXT else np.array(downscaled(Image.fromarray(raw)))

    cost = BaseEncoder.cost

    def match(
        self, a: tuple[str, Sequence[Any]], b: tuple[str, Sequence[Any]], pairs: Array
    ) -> Array:
        """Pictures and texts, pairs (P, 2) of their indices -> (P,) float32."""
        pixels, texts, pairs = image_and_text(self, a, b, pairs)
        # Named by modality, as in `st:` encoders: a bare text could be read as a picture's address.
        pictures = {i: {"image": Image.fromarray(pixels[i])} for i in set(pairs[:, 0].tolist())}
        inputs = [({"text": replace_surrogates(texts[j])}, pictures[i]) for i, j in pairs.tolist()]
        if not inputs:
            return np.zeros(0, dtype=np.float32)
        scores = self._network.predict(inputs, batch_size=BATCH, show_progress_bar=False)
        return np.asarray(scores, dtype=np.float32).reshape(-1)

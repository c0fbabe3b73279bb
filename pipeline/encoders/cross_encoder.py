"""Rerankers: any CrossEncoder of sentence-transformers that scores words with pictures, such as
Qwen3-VL-Reranker and jina-reranker-m0. No code of a model's own is run.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from PIL import Image
from sentence_transformers import CrossEncoder

from chiasm.pipeline.errors import EncoderError
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.pretrained.sentence_models import clean, load_network, shrunk

BATCH = 8  # pairs at once: such models are large


@functools.cache
def load_cross_encoder(model: str, settings: EncoderSettings) -> CrossEncoderScorer:
    """The CrossEncoder of a folder or a hub id, kept for the next query; raises EncoderError or
    UsageError, in one line."""
    folder, network, _, _ = load_network(CrossEncoder, model, settings)
    if not network.supports("image"):
        raise EncoderError(
            f"reranker {folder.what}",
            expected="a CrossEncoder for pictures",
            found="one for " + ", ".join(map(str, network.modalities)),
            do="take one for both, such as st:Qwen/Qwen3-VL-Reranker-2B",
        )
    return CrossEncoderScorer(network)


class CrossEncoderScorer:
    """Pictures with texts -> scores."""

    def __init__(self, network: CrossEncoder) -> None:
        self._network = network

    def score_pairs(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> np.ndarray:
        """B RGB pictures, B texts -> (B,) float32, higher is nearer, in the model's own scale."""
        # Named by kind, as in `st:` encoders: a bare text could be read as a picture's address.
        pairs = [
            ({"text": clean(text)}, {"image": shrunk(picture)})
            for picture, text in zip(pictures, texts, strict=True)
        ]
        scores = self._network.predict(pairs, batch_size=BATCH, show_progress_bar=False)
        return np.asarray(scores, dtype=np.float32).reshape(-1)

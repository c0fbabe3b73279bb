"""Rerankers: any CrossEncoder of sentence-transformers that scores words with pictures, such as
Qwen3-VL-Reranker and jina-reranker-m0. No code of a model's own is run.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from pipeline.encoders import EncoderSettings
from pipeline.encoders.device import PRECISIONS, resolve_device, resolve_precision
from pipeline.encoders.folder import find_model, loading
from pipeline.encoders.sentence_inputs import clean, shrunk
from pipeline.errors import EncoderError

WEIGHTS = "*.safetensors"


@functools.cache
def load_cross_encoder(model: str, settings: EncoderSettings | None = None) -> CrossEncoderScorer:
    """The CrossEncoder of a folder or a hub id, kept for the next query; EncoderError in one
    line."""
    from sentence_transformers import CrossEncoder  # six seconds that only this stage pays

    settings = settings or EncoderSettings()
    device = resolve_device(settings.device)
    precision = resolve_precision(settings.precision, device)
    folder = find_model("st", model, WEIGHTS, nested=True)
    with loading(folder.what, "a CrossEncoder"):
        network = CrossEncoder(
            str(folder.path),
            device=str(device),
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs={"dtype": PRECISIONS[precision], "use_safetensors": True},
        )
    if not network.supports("image"):
        raise EncoderError(
            f"reranker {folder.what}",
            expected="a CrossEncoder for pictures",
            found="one for " + ", ".join(map(str, network.modalities)),
            do="take one for both, such as st:Qwen/Qwen3-VL-Reranker-2B",
        )
    return CrossEncoderScorer(network)


class CrossEncoderScorer:
    """Texts with pictures -> scores."""

    def __init__(self, network: Any) -> None:
        self._network = network

    def score(self, texts: Sequence[str], pictures: Sequence[Image.Image]) -> np.ndarray:
        """B texts, B RGB pictures -> (B,) float32, higher is nearer, in the model's own scale."""
        if not texts:
            return np.zeros(0, np.float32)
        # Named by kind, as in `st:` encoders: a bare text could be read as a picture's address.
        pairs = [
            ({"text": clean(text)}, {"image": shrunk(picture)})
            for text, picture in zip(texts, pictures, strict=True)
        ]
        scores = self._network.predict(pairs, batch_size=8, show_progress_bar=False)
        return np.asarray(scores, dtype=np.float32).reshape(-1)

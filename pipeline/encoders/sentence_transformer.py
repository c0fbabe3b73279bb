"""`st:ID_OR_DIR`: any SentenceTransformer that takes pictures, such as Qwen3-VL-Embedding or CLIP.

The model's own modules preprocess, tokenise and pool, on the encoder's thread: what resize they do
is theirs to know, so decode threads hand over whole pictures, bounded in size. That costs memory
and a core where `hf:` costs neither; take `hf:` for CLIP and SigLIP. No code of a model's own is
run: what needs trust_remote_code is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer

from chiasm.pipeline.encoders import mean_of, unit
from chiasm.pipeline.errors import EncoderError
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.pretrained.hub import ModelFolder
from chiasm.pipeline.pretrained.sentence_models import LARGEST, clean, load_network, shrunk


def load(model: str, settings: EncoderSettings) -> SentenceTransformerEncoder:
    """The encoder of a folder or a hub id; raises EncoderError or UsageError, in one line."""
    folder, network, precision, device = load_network(SentenceTransformer, model, settings)
    lacking = [kind for kind in ("image", "text") if not network.supports(kind)]
    if lacking:
        raise EncoderError(
            f"encoder {folder.what}",
            expected="a SentenceTransformer for pictures and texts",
            found="one without " + " or ".join(lacking),
            do="take one with both, such as st:Qwen/Qwen3-VL-Embedding-2B",
        )
    return SentenceTransformerEncoder(folder, network.eval(), precision, device)


class SentenceTransformerEncoder:
    """One SentenceTransformer; see the protocol `chiasm.pipeline.encoders.Encoder`."""

    image_size = None

    def __init__(
        self,
        folder: ModelFolder,
        network: SentenceTransformer,
        precision: str,
        device: torch.device,
    ) -> None:
        self.name = folder.name
        self.precision = precision
        self.device = str(device)
        self._network = network
        self._fuses = network.supports(("image", "text"))
        self.preprocessing = {
            "image": {"largest": LARGEST, "then": "the model's own"},
            "text": {"prompt": network.prompts.get(network.default_prompt_name or "", "")},
            "joint": "the model's own" if self._fuses else "normalised mean",
        }
        self.fingerprint = folder.fingerprint(self.preprocessing)
        self.dim = self._encode([{"text": "a"}]).shape[1]

    def preprocess(self, image: Image.Image) -> np.ndarray:
        """One RGB picture -> uint8 (H, W, 3), shrunk to at most LARGEST pixels."""
        return np.array(shrunk(image))

    def encode_images(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """B outputs of `preprocess` -> (B, D) float32, unit rows."""
        return self._encode([{"image": Image.fromarray(picture)} for picture in pixels])

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """B texts, under the model's default prompt -> (B, D) float32, unit rows."""
        return self._encode([{"text": clean(text)} for text in texts])

    def encode_pairs(
        self,
        image: np.ndarray,
        text: np.ndarray,
        pixels: Sequence[np.ndarray],
        texts: Sequence[str],
    ) -> np.ndarray:
        """B pairs -> (B, D) float32 unit rows: both read together by a model that can (one more
        forward pass), the normalised mean elsewhere."""
        if not self._fuses:
            return mean_of(image, text)
        return self._encode(
            [
                {"image": Image.fromarray(picture), "text": clean(caption)}
                for picture, caption in zip(pixels, texts, strict=True)
            ]
        )

    def _encode(self, inputs: list[dict[str, Any]]) -> np.ndarray:
        # Inputs are named by kind, never bare: a bare text that reads like the URL or the path of a
        # picture would be fetched and shown to the model, and captions are anybody's.
        if not inputs:
            return np.zeros((0, self.dim), np.float32)
        rows = self._network.encode(
            inputs, batch_size=len(inputs), show_progress_bar=False, convert_to_numpy=True
        )
        return unit(rows)

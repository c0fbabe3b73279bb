"""`st:ID_OR_DIR`: any SentenceTransformer that takes pictures, such as Qwen3-VL-Embedding or CLIP.

The model's own modules preprocess, tokenise and pool, on the encoder's thread: what resize they do
is theirs to know, so decode threads hand over whole pictures, bounded in size. That costs memory
and a core where `hf:` costs neither; take `hf:` for CLIP and SigLIP. No code of a model's own is
run: what needs trust_remote_code is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer

from chiasm.pipeline.encoders.base import BaseEncoder, require_modality, unit
from chiasm.pipeline.encoders.protocols import JOINT, Array, Encoded, Input
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


def load(model: str, settings: EncoderSettings) -> SentenceTransformerEncoder:
    """The encoder of a folder or a hub id; raises EncoderError or UsageError, in one line."""
    folder, network, precision, device = load_network(SentenceTransformer, model, settings)
    lacking = [kind for kind in ("image", "text") if not network.supports(kind)]
    if lacking:
        raise EncoderError(
            folder.title,
            expected="a SentenceTransformer for pictures and texts",
            found="one without " + " or ".join(lacking),
            do="take one with both, such as st:Qwen/Qwen3-VL-Embedding-2B",
        )
    return SentenceTransformerEncoder(folder, network.eval(), precision, device)


@dataclass(frozen=True)
class Inputs:
    """A batch's inputs as they went in: a model that fuses reads pictures and texts again."""

    items: list[Any]

    def take(self, rows: Array) -> Inputs:
        return Inputs([self.items[row] for row in rows])


class SentenceTransformerEncoder(BaseEncoder):
    """One SentenceTransformer; see the protocol `chiasm.pipeline.encoders.Encoder`."""

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
        self.modalities = {IMAGE: Input(), TEXT: Input()}
        self.preprocessing = {
            "image": {"largest": MAX_PIXELS, "then": "the model's own"},
            "text": {"prompt": network.prompts.get(network.default_prompt_name or "", "")},
            "joint": "the model's own" if self._fuses else "normalised mean",
        }
        self.fingerprint = folder.fingerprint(self.preprocessing)
        dim = self._encode([{"text": "a"}]).shape[1]
        self.dims = dict.fromkeys((IMAGE, TEXT, JOINT), dim)

    def preprocess(self, modality: str, raw: Any) -> Any:
        """A picture uint8 (H, W, 3) -> the same, downscaled to at most MAX_PIXELS pixels. A text
        stays as it is."""
        require_modality(self, modality)
        return raw if modality == TEXT else np.array(downscaled(Image.fromarray(raw)))

    def encode(self, modality: str, items: Sequence[Any]) -> Encoded:
        """B outputs of `preprocess`, texts under the model's default prompt -> B rows."""
        require_modality(self, modality)
        if not len(items):
            return Encoded(np.zeros((0, self.dims[modality]), np.float32))
        rows = self._encode([{modality: _model_input(modality, item)} for item in items])
        return Encoded(rows, state=Inputs(list(items)) if self._fuses else None)

    def encode_joint(self, parts: Mapping[str, Encoded]) -> Array:
        """B pairs -> (B, D) float32 unit rows: both read together by a model that can (one more
        forward pass), the normalised mean elsewhere."""
        image, text = parts[IMAGE].state, parts[TEXT].state
        if not isinstance(image, Inputs) or not isinstance(text, Inputs):
            return super().encode_joint(parts)
        return self._encode(
            [
                {IMAGE: _model_input(IMAGE, picture), TEXT: _model_input(TEXT, caption)}
                for picture, caption in zip(image.items, text.items, strict=True)
            ]
        )

    def _encode(self, inputs: list[dict[str, Any]]) -> Array:
        # Inputs are named by modality, never bare: a bare text that reads like the URL or the path
        # of a picture would be fetched and shown to the model, and captions are anybody's.
        rows = self._network.encode(
            inputs, batch_size=len(inputs), show_progress_bar=False, convert_to_numpy=True
        )
        return unit(rows)


def _model_input(modality: str, item: Any) -> Any:
    return Image.fromarray(item) if modality == IMAGE else replace_surrogates(item)

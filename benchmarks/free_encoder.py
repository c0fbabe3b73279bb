"""An encoder family `free` that costs nothing: what is left to pay is reading, decoding, writing.

It preprocesses as CLIP does (224 px, bicubic, the middle square), so that decode threads have the
work they always have, and answers with one constant unit vector of CLIP's width a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from chiasm.pipeline.encoders import BaseEncoder, Encoded, Input
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.pretrained.image_processing import Scale, SquareProcessing

DIM = 512


class FreeEncoder(BaseEncoder):
    """See the protocol `chiasm.pipeline.encoders.Encoder`."""

    name, fingerprint, precision, device = "free", "free", "float32", "cpu"

    def __init__(self) -> None:
        scale = Scale(1.0, (0.0,) * 3, (1.0,) * 3)
        self._pixels = SquareProcessing(224, 224, int(Image.Resampling.BICUBIC), scale)
        self.preprocessing = self._pixels.describe()
        self.modalities = {"image": Input(side=224), "text": Input()}
        self.dims = dict.fromkeys(("image", "text", "joint"), DIM)

    def preprocess(self, modality: str, raw: Any) -> Any:
        return raw if modality == "text" else self._pixels.preprocess(raw)

    def encode(self, modality: str, items: Sequence[Any]) -> Encoded:
        return Encoded(_constant(len(items)))

    def encode_joint(self, parts: Mapping[str, Encoded]) -> np.ndarray:
        return parts["image"].vectors


def _constant(rows: int) -> np.ndarray:
    return np.full((rows, DIM), DIM**-0.5, np.float32)


def load(model: str, settings: EncoderSettings) -> FreeEncoder:
    return FreeEncoder()

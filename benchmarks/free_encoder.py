"""An encoder family `free` that costs nothing: what is left to pay is reading, decoding, writing.

It preprocesses as CLIP does (224 px, bicubic, the middle square), so that decode threads have the
work they always have, and answers with one constant unit vector of CLIP's width a row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.pretrained.image_processing import Scale, SquarePixels

DIM = 512


class FreeEncoder:
    """See the protocol `chiasm.pipeline.encoders.Encoder`."""

    name, fingerprint, precision, device = "free", "free", "float32", "cpu"
    dim, image_size = DIM, 224

    def __init__(self) -> None:
        scale = Scale(1.0, (0.0,) * 3, (1.0,) * 3)
        self._pixels = SquarePixels(224, 224, int(Image.Resampling.BICUBIC), scale)
        self.preprocessing = self._pixels.described()

    def preprocess(self, image: Image.Image) -> np.ndarray:
        return self._pixels.preprocess(image)

    def encode_images(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        return _constant(len(pixels))

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        return _constant(len(texts))

    def encode_pairs(
        self,
        image: np.ndarray,
        text: np.ndarray,
        pixels: Sequence[np.ndarray],
        texts: Sequence[str],
    ) -> np.ndarray:
        return image


def _constant(rows: int) -> np.ndarray:
    return np.full((rows, DIM), DIM**-0.5, np.float32)


def load(model: str, settings: EncoderSettings) -> FreeEncoder:
    return FreeEncoder()

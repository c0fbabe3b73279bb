"""An encoder of three modalities in one space of four axes: pictures, arrays and texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from array_encoder import ArrayEncoder

from chiasm.pipeline.encoders import Encoded, EncoderSettings, Input, unit


class ThreeEncoder(ArrayEncoder):
    """A picture is the mean of its channels, and of all of them."""

    name = "three"
    fingerprint: str = "3" * 32

    def __init__(self) -> None:
        super().__init__()
        self.modalities = {"image": Input(side=16), **self.modalities}
        self.dims = dict.fromkeys((*self.modalities, "joint"), 4)

    def preprocess(self, modality: str, raw: Any) -> Any:
        return raw if modality == "image" else super().preprocess(modality, raw)

    def encode(self, modality: str, items: Sequence[Any]) -> Encoded:
        if modality != "image":
            return super().encode(modality, items)
        means = np.stack([item.reshape(-1, 3).mean(axis=0) for item in items]).astype(np.float32)
        return Encoded(unit(np.concatenate([means, means.mean(axis=1, keepdims=True)], axis=1)))


def load(model: str, settings: EncoderSettings) -> ThreeEncoder:
    return ThreeEncoder()

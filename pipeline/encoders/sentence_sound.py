"""Sound in models of sentence-transformers: rate and length are those of the model's own feature
extractor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from chiasm.pipeline.encoders.protocols import SOUND_EXTENSIONS, Input
from chiasm.pipeline.errors import EncoderError

AUDIO = "audio"  # what the library calls it


@dataclass(frozen=True)
class SentenceSound:
    """rate: samples a second. most: samples of which the extractor takes a piece by chance where
    there are more, None where it does not."""

    rate: int
    most: int | None

    @classmethod
    def of(cls, network: Any, title: str) -> SentenceSound | None:
        """None for a model that takes no sound; EncoderError for one that takes it by chance."""
        if not network.supports(AUDIO):
            return None
        module, extractor = _module_of_sound(network)
        if module is None:
            raise EncoderError(
                title, expected="a feature extractor with a sampling rate", found="none"
            )
        if getattr(extractor, "truncation", None) == "fusion":
            raise EncoderError(
                title,
                expected="a model whose sounds do not depend on chance",
                found="a CLAP that fuses pieces",
                do="name it as hf:, which takes the same pieces each time",
            )
        module.register_forward_pre_hook(_in_its_precision)
        return cls(extractor.sampling_rate, getattr(extractor, "nb_max_samples", None))

    @property
    def input(self) -> Input:
        return Input(extensions=SOUND_EXTENSIONS, rate=self.rate)

    def preprocess(self, samples: np.ndarray) -> np.ndarray:
        """(T,) float32 -> the same or, of more than the extractor takes, the middle."""
        if self.most is None or len(samples) <= self.most:
            return samples
        start = (len(samples) - self.most) // 2
        return samples[start : start + self.most].copy()

    def model_input(self, samples: np.ndarray) -> dict[str, Any]:
        """What the model is given under `audio`."""
        return {"array": samples, "sampling_rate": self.rate}


def _module_of_sound(network: Any) -> tuple[torch.nn.Module | None, Any]:
    """The module that takes sound, which may be behind a router, and its feature extractor."""
    for module in network.modules():
        processor = getattr(module, "processor", None)
        extractor = getattr(processor, "feature_extractor", processor)
        if isinstance(getattr(extractor, "sampling_rate", None), int):
            return module, extractor
    return None, None


def _in_its_precision(module: torch.nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a module is called with, spectrograms in the precision of its weights: the library
    leaves them in float32."""
    features, *rest = given
    dtype = next(module.parameters()).dtype
    cast = {
        name: value.to(dtype) if torch.is_tensor(value) and value.is_floating_point() else value
        for name, value in features.items()
    }
    return cast, *rest

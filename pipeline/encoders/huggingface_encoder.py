"""The two towers of a dual encoder of transformers, behind the protocol `Encoder`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from chiasm.pipeline.encoders.base import BaseEncoder, require_modality, unit
from chiasm.pipeline.encoders.explain_huggingface import HuggingFaceMapper
from chiasm.pipeline.encoders.explainer import DEFAULT, GRAD_ECLIP, LEGRAD, Explanation
from chiasm.pipeline.encoders.explaining import explain
from chiasm.pipeline.encoders.huggingface_texts import Tokens
from chiasm.pipeline.encoders.protocols import JOINT, Array, Encoded, Input
from chiasm.pipeline.pretrained.device_and_precision import PRECISIONS
from chiasm.pipeline.pretrained.hub import ModelFolder
from chiasm.pipeline.pretrained.image_processing import ImageProcessing
from chiasm.pipeline.records import IMAGE, TEXT


@dataclass(frozen=True)
class Parts:
    """What a model is made of once it is loaded."""

    folder: ModelFolder
    network: Any
    tokens: Tokens
    pixels: ImageProcessing
    precision: str
    device: torch.device

    @property
    def preprocessing(self) -> dict[str, Any]:
        """As `Encoder.preprocessing`."""
        return {"image": self.pixels.describe(), "text": self.tokens.describe()}

    def preprocess(self, modality: str, raw: Any) -> Any:
        """A picture uint8 (H, W, 3) -> what the model's processing makes of it; a text stays as it
        is."""
        return self.pixels.preprocess(raw) if modality == IMAGE else raw

    def image_inputs(self, items: Sequence[Any]) -> dict[str, torch.Tensor]:
        """B pictures as `preprocess` makes them -> the arguments of the image tower."""
        return self.pixels.inputs(items, self.device, PRECISIONS[self.precision])

    def text_inputs(self, texts: Sequence[str]) -> tuple[dict[str, torch.Tensor], Array]:
        """B texts -> the arguments of the text tower, and how many tokens of each are cut off."""
        tokens, cut = self.tokens.read(texts)
        return {name: value.to(self.device) for name, value in tokens.items()}, cut


class HuggingFaceEncoder(BaseEncoder):
    """See the protocol `chiasm.pipeline.encoders.Encoder`. dim: the width of its vectors."""

    def __init__(self, parts: Parts, dim: int) -> None:
        self.name = parts.folder.name
        self.modalities = {IMAGE: Input(side=parts.pixels.side), TEXT: Input()}
        self.dims: Mapping[str, int] = dict.fromkeys((IMAGE, TEXT, JOINT), dim)
        self.precision = parts.precision
        self.device = str(parts.device)
        self.preprocessing = parts.preprocessing
        self.fingerprint = parts.folder.fingerprint(self.preprocessing)
        self._parts = parts
        self._network, self._tokens, self._pixels = parts.network, parts.tokens, parts.pixels

    def preprocess(self, modality: str, raw: Any) -> Any:
        """A picture uint8 (H, W, 3) -> uint8 (3, S, S), or (H, W, 3) where the model takes any
        size. A text stays as it is."""
        require_modality(self, modality)
        return self._parts.preprocess(modality, raw)

    @torch.inference_mode()
    def encode(self, modality: str, items: Sequence[Any]) -> Encoded:
        """B outputs of `preprocess` -> B rows; texts are cut to the model's length."""
        require_modality(self, modality)
        if not len(items):
            return Encoded(np.zeros((0, self.dims[modality]), np.float32))
        if modality == IMAGE:
            return Encoded(_rows(self.image_features(self._parts.image_inputs(items))))
        tokens, cut = self._parts.text_inputs(items)
        return Encoded(_rows(self.text_features(tokens)), tokens_cut=cut)

    def image_features(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The arguments of the image tower -> (B, D), or of every token, (B, T, D)."""
        return self._network.get_image_features(**inputs).pooler_output

    def text_features(self, tokens: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The arguments of the text tower -> (B, D), or of every token, (B, T, D)."""
        return self._network.get_text_features(**tokens).pooler_output


class ExplainingHuggingFaceEncoder(HuggingFaceEncoder):
    """One whose attention gives maps of patches and tokens."""

    methods = (DEFAULT, GRAD_ECLIP, LEGRAD)

    def explain(
        self, pictures: Sequence[Array], texts: Sequence[str], method: str = DEFAULT
    ) -> list[Explanation]:
        """See the protocol `Explainer`."""
        device, dtype = self._parts.device, PRECISIONS[self.precision]
        mapper = HuggingFaceMapper(self._network, self._tokens, self._pixels, device, dtype)
        return explain(self, None, mapper, pictures, texts, method)


def _rows(features: torch.Tensor) -> Array:
    """The projected vectors (B, D), made unit in float32 whatever the towers ran in. FLAVA projects
    every token: its vector is that of the first."""
    first = features if features.ndim == 2 else features[:, 0]
    return unit(first.float().cpu().numpy())

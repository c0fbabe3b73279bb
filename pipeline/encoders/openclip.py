"""`oc:NAME_OR_DIR`: models of open_clip, the extra `openclip`.

Its zoo has models that are nowhere else: PE-Core, MobileCLIP2, DFN, the largest SigLIP2. Networks
and tokenizers are open_clip's own (pretrained/open_clip_*.py); pictures are preprocessed as it does
it, in the decode threads. All weights are in the chosen precision, as in its `pure_bf16`; vectors
come back in float32. All is read from one folder, and no code in it is run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from chiasm.pipeline.encoders.base import BaseEncoder, require_modality, unit
from chiasm.pipeline.encoders.protocols import JOINT, Encoded, Input
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.pretrained.device_and_precision import (
    PRECISIONS,
    resolve_device,
    resolve_precision,
)
from chiasm.pipeline.pretrained.open_clip_folder import OpenClipModel, find_open_clip
from chiasm.pipeline.pretrained.open_clip_images import SIDE, OpenClipImages
from chiasm.pipeline.pretrained.open_clip_library import open_clip_for
from chiasm.pipeline.pretrained.open_clip_network import open_clip_network
from chiasm.pipeline.pretrained.open_clip_texts import OpenClipTexts
from chiasm.pipeline.records import IMAGE, TEXT

# What of a configuration the vectors do not depend on, or what the fingerprint has as files or as
# words already: names of other repositories.
_NAMES = {"hf_tokenizer_name", "hf_model_name", "hf_model_pretrained", "timm_model_pretrained"}


def load(model: str, settings: EncoderSettings) -> OpenClipEncoder:
    """The encoder of a folder, a hub id or NAME/TAG; raises EncoderError or UsageError, in one
    line."""
    device = resolve_device(settings.device)
    precision = resolve_precision(settings.precision, device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    found = find_open_clip(model)
    title = found.folder.title
    size = found.network["vision_cfg"].get("image_size", SIDE)
    pixels = OpenClipImages.of(found.pictures, size, title)
    library = open_clip_for(title)
    tokens = OpenClipTexts.of(library, found.folder, found.network["text_cfg"])
    network = open_clip_network(library, found.folder, found.network)
    return OpenClipEncoder(
        found,
        tokens=tokens,
        pixels=pixels,
        network=network.to(device=device, dtype=PRECISIONS[precision]),
        precision=precision,
        device=device,
    )


class OpenClipEncoder(BaseEncoder):
    """The two towers of one open_clip model; see the protocol
    `chiasm.pipeline.encoders.Encoder`."""

    def __init__(
        self,
        found: OpenClipModel,
        *,
        tokens: OpenClipTexts,
        pixels: OpenClipImages,
        network: Any,
        precision: str,
        device: torch.device,
    ) -> None:
        self.name = found.folder.name
        self.modalities = {IMAGE: Input(side=pixels.side), TEXT: Input()}
        self.dims = dict.fromkeys((IMAGE, TEXT, JOINT), found.network["embed_dim"])
        self.precision = precision
        self.device = str(device)
        self.preprocessing = {"image": pixels.describe(), "text": tokens.describe()}
        self.fingerprint = found.folder.fingerprint(
            {**self.preprocessing, "network": _said_of(found.network)}
        )
        self._tokens, self._pixels, self._network = tokens, pixels, network
        self._device, self._dtype = device, PRECISIONS[precision]

    def preprocess(self, modality: str, raw: Any) -> Any:
        """A picture uint8 (H, W, 3) -> uint8 (3, S, S). A text stays as it is."""
        require_modality(self, modality)
        return self._pixels.preprocess(raw) if modality == IMAGE else raw

    @torch.inference_mode()
    def encode(self, modality: str, items: Sequence[Any]) -> Encoded:
        """B outputs of `preprocess` -> B rows; texts are cut to the model's length, and what was
        cut is counted."""
        require_modality(self, modality)
        if not len(items):
            return Encoded(np.zeros((0, self.dims[modality]), np.float32))
        if modality == IMAGE:
            pixels = self._pixels.inputs(items, self._device, self._dtype)
            return Encoded(_rows(self._network.encode_image(pixels)))
        ids, cut = self._tokens(items)
        if int(ids.max()) >= self._network.vocab_size:  # on CUDA it would end the process
            raise ValueError(
                f"token {int(ids.max())}, beyond {self._network.vocab_size} of the model"
            )
        return Encoded(_rows(self._network.encode_text(ids.to(self._device))), tokens_cut=cut)


def _rows(features: torch.Tensor) -> np.ndarray:
    """The projected vectors (B, D), made unit in float32 whatever the towers ran in."""
    return unit(features.float().cpu().numpy())


def _said_of(network: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without names of other repositories."""
    return {
        name: _said_of(value) if isinstance(value, Mapping) else value
        for name, value in network.items()
        if name not in _NAMES
    }

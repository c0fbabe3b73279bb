"""The encoder that ships: two small towers trained on the picture-book world, English and Chinese.

`pocket` loads the weights beside the package, `pocket:DIR` any model folder that
`chiasm train` wrote. It needs torch and safetensors and no network, and loads in
a fraction of a second, which is what a query at a prompt waits for. It knows its small world and
nothing of photographs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chiasm.pipeline.encoders.base import (
    BaseEncoder,
    image_and_text,
    model_folder,
    require_modality,
)
from chiasm.pipeline.encoders.explain_pocket import PocketMapper
from chiasm.pipeline.encoders.explainer import (
    DEFAULT,
    GRAD_ECLIP,
    LEGRAD,
    MAX_SIM,
    Explanation,
)
from chiasm.pipeline.encoders.explaining import explain
from chiasm.pipeline.encoders.protocols import JOINT, Array, Encoded, Input
from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.model.checkpoint import FILES, SHIPPED, load_model
from chiasm.pipeline.model.fusion import Modality
from chiasm.pipeline.model.inference import (
    fuse_pairs,
    ids_modality,
    image_modality,
    match_pairs,
)
from chiasm.pipeline.model.preprocess import RULE, to_pixels
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.pretrained.device_and_precision import (
    PRECISIONS,
    resolve_device,
    resolve_precision,
)
from chiasm.pipeline.records import IMAGE, TEXT


def load(model: str, settings: EncoderSettings) -> PocketEncoder:
    """The encoder of a model folder, the shipped one for an empty name.

    Raises EncoderError for a folder that holds no model, UsageError for settings that mean nothing.
    """
    if not model:
        return PocketEncoder(SHIPPED, settings, "pocket")
    return PocketEncoder(model_folder("pocket", model), settings, f"pocket:{model}")


class PocketEncoder(BaseEncoder):
    """A `JointNetwork` behind the protocols of `chiasm.pipeline.encoders`. `fuses`: whether it has
    learned to fuse and to match. network, tokenizer: of the folder.

    The same batch gives the same bytes on one kind of processor with one number of threads.
    """

    def __init__(self, folder: Path, settings: EncoderSettings, name: str) -> None:
        if settings.threads:
            torch.set_num_threads(settings.threads)
        device = resolve_device(settings.device)
        self.name = name
        self.device = str(device)
        self.precision = resolve_precision(settings.precision, device)
        model, self.tokenizer = load_model(folder, PRECISIONS[self.precision])
        self.network = model.to(device).requires_grad_(False)
        self.fuses = model.fusion is not None
        self.methods = (DEFAULT, GRAD_ECLIP, LEGRAD, *((MAX_SIM,) if self.fuses else ()))
        side = model.config.image.side
        self.modalities = {IMAGE: Input(side=side), TEXT: Input()}
        self.dims = dict.fromkeys((IMAGE, TEXT, JOINT), model.config.dim)
        self.preprocessing: dict[str, Any] = {
            "image": RULE,
            "side": side,
            "text": self.tokenizer.text_rule,
            "context": model.config.text.context,
        }
        self.fingerprint = _fingerprint(folder, self.preprocessing)

    def preprocess(self, modality: str, raw: Any) -> Any:
        """A picture uint8 (H, W, 3) -> uint8 (3, S, S): shorter side to S, then the middle square.
        A text stays as it is; what lies past the context is not read."""
        require_modality(self, modality)
        if modality == TEXT:
            return raw
        return to_pixels(raw, self.network.config.image.side)

    @torch.inference_mode()
    def encode(self, modality: str, items: Sequence[Any]) -> Encoded:
        """B outputs of `preprocess` -> B rows; the state is what the fusion reads of them."""
        require_modality(self, modality)
        if not len(items):
            return Encoded(np.zeros((0, self.dims[modality]), dtype=np.float32))
        cut = None
        if modality == IMAGE:
            rows = image_modality(self.network, items)
        else:
            ids, cut = self.tokenizer.read(items, self.network.config.text.context)
            rows = ids_modality(self.network, ids)
        vectors = rows.vector.float().cpu().numpy()
        return Encoded(vectors, tokens_cut=cut, state=rows if self.fuses else None)

    @torch.inference_mode()
    def encode_joint(self, parts: Mapping[str, Encoded]) -> Array:
        """Pairs -> (B, D) float32 unit rows: fused by what the model has learned, the mean of a
        model of two towers alone.
        """
        image, text = parts[IMAGE].state, parts[TEXT].state
        if not isinstance(image, Modality) or not isinstance(text, Modality):
            return super().encode_joint(parts)
        return fuse_pairs(self.network, text, image)

    @torch.inference_mode()
    def match(
        self, a: tuple[str, Sequence[Any]], b: tuple[str, Sequence[Any]], pairs: Array
    ) -> Array:
        """Outputs of `preprocess` of pictures and of texts, pairs (P, 2) of their indices -> (P,)
        float32, the log odds that the text is true of the picture. UsageError from a model of two
        towers alone."""
        if self.network.matching is None:
            raise UsageError(
                f"encoder {self.name}",
                expected="a model that learned to match words with pictures",
                found="two towers alone",
                do="train one: chiasm train pocket --to DIR",
            )
        pixels, texts, pairs = image_and_text(self, a, b, pairs)
        return match_pairs(self.network, self.tokenizer, pixels, texts, pairs)

    def explain(
        self, pictures: Sequence[Array], texts: Sequence[str], method: str = DEFAULT
    ) -> list[Explanation]:
        """See the protocol `Explainer`. MAX_SIM takes a model that has learned to fuse."""
        mapper = PocketMapper(self.network, self.tokenizer)
        return explain(self, self if self.fuses else None, mapper, pictures, texts, method)


def _fingerprint(folder: Path, preprocessing: dict[str, Any]) -> str:
    """32 hex digits over the files of the model and the rules by which its input is made."""
    digest = hashlib.blake2b(digest_size=16)
    for name in FILES:
        digest.update((folder / name).read_bytes())
    digest.update(repr(sorted(preprocessing.items())).encode())
    return digest.hexdigest()

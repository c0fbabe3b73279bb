"""`joint:DIR`: an encoder that stays as it is, and the fusion and matching that
`chiasm train joint --towers` learned on top of it.

Vectors of pictures and of texts are that encoder's own. The encoder stays where it was; that it is
still the same is checked by its fingerprint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chiasm.pipeline.encoders.base import (
    BaseEncoder,
    earlier_fingerprints,
    image_and_text,
    model_folder,
)
from chiasm.pipeline.encoders.protocols import JOINT, Array, Encoded, Encoder
from chiasm.pipeline.errors import EncoderError
from chiasm.pipeline.model.frozen_joint import FROZEN_FILES, load_frozen_joint
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.records import IMAGE, TEXT

BLOCK = 1024  # pairs of one forward pass: two tokens each


def load(
    model: str, settings: EncoderSettings, load_base: Callable[[str, EncoderSettings], Encoder]
) -> JointEncoder:
    """The encoder of a model folder; load_base: name and settings -> the encoder below it. Raises
    EncoderError for a folder that holds none, and where that encoder is gone or has become
    another."""
    return JointEncoder(model_folder("joint", model).resolve(), settings, load_base)


class JointEncoder(BaseEncoder):
    """See the protocol `chiasm.pipeline.encoders.Encoder`, and `Matcher`. base: the encoder below,
    whose items and vectors these are."""

    def __init__(
        self,
        folder: Path,
        settings: EncoderSettings,
        load_base: Callable[[str, EncoderSettings], Encoder],
    ) -> None:
        network = load_frozen_joint(folder)
        config = network.config
        self.name = f"joint:{folder}"
        self.base = load_base(config.encoder, settings)
        earlier = earlier_fingerprints(self.base)
        if config.fingerprint not in (self.base.fingerprint, *earlier):
            raise EncoderError(
                f"encoder {self.name}",
                expected=f"the encoder {config.encoder} that it was trained on",
                found="another one of that name",
                do="put that model back, or train again on this one",
            )
        self.precision, self.device = self.base.precision, self.base.device
        self._network = network.to(self.device)
        # What the fusion takes: of an encoder with more modalities it would leave the others out.
        self.modalities = {name: self.base.modalities[name] for name in (IMAGE, TEXT)}
        self.dims = {name: self.base.dims[name] for name in (IMAGE, TEXT)} | {JOINT: config.dim}
        joint = "weighted mean" if network.fusion.is_mean else "learned fusion"
        self.preprocessing: dict[str, Any] = {**self.base.preprocessing, "joint": joint}
        self.fingerprint = _fingerprint(folder, self.base.fingerprint)
        self.earlier_fingerprints = {
            _fingerprint(folder, before): what for before, what in earlier.items()
        }

    def preprocess(self, modality: str, raw: Any) -> Any:
        """As the encoder below."""
        return self.base.preprocess(modality, raw)

    def cost(self, modality: str, item: Any) -> int:
        """As the encoder below."""
        return self.base.cost(modality, item)

    def encode(self, modality: str, items: Sequence[Any]) -> Encoded:
        """As the encoder below."""
        return self.base.encode(modality, items)

    def encode_queries(self, modality: str, items: Sequence[Any]) -> Encoded:
        """As the encoder below."""
        return self.base.encode_queries(modality, items)

    def encode_joint_queries(self, parts: Mapping[str, Encoded]) -> Array:
        """As the encoder below."""
        return self.base.encode_joint_queries(parts)

    @torch.inference_mode()
    def encode_joint(self, parts: Mapping[str, Encoded]) -> Array:
        """B pairs -> (B, D) float32 unit rows: fused where the fusion beat the best weighted mean
        on samples held out, else that mean."""
        text, image = (self._vectors(parts[modality]) for modality in (TEXT, IMAGE))
        rows = [np.zeros((0, self._network.config.dim), np.float32)]
        for start in range(0, len(text), BLOCK):
            some = slice(start, start + BLOCK)
            fused = self._network.fuse(
                self._network.text_modality(text[some]), self._network.image_modality(image[some])
            )
            rows.append(fused.joint.cpu().numpy())
        return np.concatenate(rows)

    @torch.inference_mode()
    def match(
        self, a: tuple[str, Sequence[Any]], b: tuple[str, Sequence[Any]], pairs: Array
    ) -> Array:
        """Outputs of `preprocess` of pictures and of texts, pairs (P, 2) of their indices -> (P,)
        float32, the log odds that the text is true of the picture."""
        pixels, texts, pairs = image_and_text(self, a, b, pairs)
        logits = [np.zeros(0, np.float32)]
        if not len(pairs):
            return logits[0]
        images, image_rows = np.unique(pairs[:, 0], return_inverse=True)
        strings, text_rows = np.unique(pairs[:, 1], return_inverse=True)
        image = self._vectors(self.base.encode(IMAGE, [pixels[i] for i in images]))
        text = self._vectors(self.base.encode(TEXT, [texts[j] for j in strings]))
        for start in range(0, len(pairs), BLOCK):
            i, j = (rows[start : start + BLOCK] for rows in (image_rows, text_rows))
            match = self._network.match(
                self._network.text_modality(text[j]), self._network.image_modality(image[i])
            )
            logits.append(match.logit.cpu().numpy())
        return np.concatenate(logits)

    def _vectors(self, encoded: Encoded) -> Tensor:
        return torch.from_numpy(np.asarray(encoded.vectors, np.float32)).to(self.device)


def _fingerprint(folder: Path, base: str) -> str:
    """32 hex digits over the files of the folder and the fingerprint of the encoder below."""
    digest = hashlib.blake2b(base.encode(), digest_size=16)
    for name in FROZEN_FILES:
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()

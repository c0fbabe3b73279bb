"""The encoder that ships: two small towers trained on the picture-book world, English and Chinese.

`pocket` loads the weights beside the package, `pocket:DIR` any model folder that
`chiasm train` wrote. It needs torch and safetensors and no network, and loads in
a fraction of a second, which is what a query at a prompt waits for. It knows its small world and
nothing of photographs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from chiasm.pipeline.encoders import mean_of
from chiasm.pipeline.encoders.recent import Recent
from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.model.checkpoint import FILES, SHIPPED, load_model
from chiasm.pipeline.model.inference import BLOCK, encode_texts, fuse_pairs, look, match_pairs
from chiasm.pipeline.model.preprocess import RULE, to_pixels
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.pretrained.device import PRECISIONS, resolve_device, resolve_precision

TEXT_RULE = "NFKC, lower case, single spaces, no final full stop; own byte-pair tokens"


def load(model: str, settings: EncoderSettings) -> PocketEncoder:
    """The encoder of a model folder, the shipped one for an empty name.

    Raises EncoderError for a folder that holds no model, UsageError for settings that mean nothing.
    """
    return PocketEncoder(
        Path(model) if model else SHIPPED, settings, f"pocket:{model}" if model else "pocket"
    )


class PocketEncoder:
    """A `JointNetwork` behind the protocols of `chiasm.pipeline.encoders`; `fuses`: has it learned
    to fuse and to match?

    The same batch gives the same bytes on one kind of processor with one number of threads.
    """

    def __init__(self, folder: Path, settings: EncoderSettings, name: str) -> None:
        if settings.threads:
            torch.set_num_threads(settings.threads)
        device = resolve_device(settings.device)
        self.name = name
        self.device = str(device)
        self.precision = resolve_precision(settings.precision, device)
        model, self._tokenizer = load_model(folder, PRECISIONS[self.precision])
        self._model = model.to(device)
        self._seen = Recent(partial(look, self._model), BLOCK)
        self.dim = model.config.dim
        self.fuses = model.fusion is not None
        self._side = model.config.image.side
        self.image_size: int | None = self._side
        self.preprocessing: dict[str, Any] = {
            "image": RULE,
            "side": self.image_size,
            "text": TEXT_RULE,
            "context": model.config.text.context,
        }
        self.fingerprint = _fingerprint(folder, self.preprocessing)

    def preprocess(self, image: Image.Image) -> np.ndarray:
        """One RGB picture -> uint8 (3, S, S): shorter side to S, then the middle square."""
        return to_pixels(image, self._side)

    def encode_images(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """B arrays uint8 (3, S, S) -> (B, D) float32, unit rows."""
        if not len(pixels):
            return np.zeros((0, self.dim), dtype=np.float32)
        return self._seen(pixels)[1].cpu().numpy()

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """B texts -> (B, D) float32, unit rows; what lies past the context is not read."""
        return encode_texts(self._model, self._tokenizer, texts)

    def encode_pairs(
        self,
        image: np.ndarray,
        text: np.ndarray,
        pixels: Sequence[np.ndarray],
        texts: Sequence[str],
    ) -> np.ndarray:
        """B pairs -> (B, D) float32 unit rows: fused by what the model has learned, the mean of a
        model of two towers alone.
        """
        if not self.fuses:
            return mean_of(image, text)
        return fuse_pairs(self._model, self._tokenizer, pixels, texts, self._seen)

    def match_pairs(self, pixels: Sequence[np.ndarray], texts: Sequence[str]) -> np.ndarray:
        """B outputs of `preprocess`, B texts -> (B,) float32, the log odds that text i tells of
        picture i. UsageError from a model of two towers alone."""
        if self._model.matching is None:
            raise UsageError(
                f"encoder {self.name}",
                expected="a model that learned to match words with pictures",
                found="two towers alone",
                do="train one: chiasm train --preset pocket --to DIR",
            )
        return match_pairs(self._model, self._tokenizer, pixels, texts, self._seen)


def _fingerprint(folder: Path, preprocessing: dict[str, Any]) -> str:
    """32 hex digits over the files of the model and the rules by which its input is made."""
    digest = hashlib.blake2b(digest_size=16)
    for name in FILES:
        digest.update((folder / name).read_bytes())
    digest.update(repr(sorted(preprocessing.items())).encode())
    return digest.hexdigest()

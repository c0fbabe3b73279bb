"""`two-tower:DIR`: an image model and a text model that others trained, joined by what
`chiasm train --preset two-tower` learned. The towers stay where they were; that they are still the
same is checked by their fingerprints.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from chiasm.pipeline.encoders.recent import Recent
from chiasm.pipeline.errors import EncoderError
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.two_tower.checkpoint import FILES, load_two_tower
from chiasm.pipeline.two_tower.frozen import ImageTower, TextFeatures, TextTower

BLOCK = 64  # pictures or texts of one forward pass


def load(model: str, settings: EncoderSettings) -> TwoTowerEncoder:
    """The encoder of a model folder. Raises EncoderError for a folder that holds none, and where
    a tower is gone or has become another."""
    if not model:
        raise EncoderError("encoder two-tower", expected="a folder after the colon")
    return TwoTowerEncoder(Path(model).expanduser().resolve(), settings)


class TwoTowerEncoder:
    """See the protocol `chiasm.pipeline.encoders.Encoder`, and `Matcher`."""

    def __init__(self, folder: Path, settings: EncoderSettings) -> None:
        network = load_two_tower(folder)
        config = network.config
        self.name = f"two-tower:{folder}"
        self._image = ImageTower(config.image.removeprefix("hf:"), settings)
        self._text = TextTower(config.text.removeprefix("st:"), settings)
        for tower, before in (
            (self._image, config.image_fingerprint),
            (self._text, config.text_fingerprint),
        ):
            if tower.fingerprint != before:
                raise EncoderError(
                    f"encoder {self.name}",
                    expected=f"the tower {tower.folder.name} that it was trained on",
                    found="other files there",
                    do="put that model back, or train again on this one",
                )
        self._network = network.to(self._image.device)
        self.dim = config.dim
        self.image_size = self._image.side
        self.precision, self.device = self._image.precision, str(self._image.device)
        self.preprocessing: dict[str, Any] = {
            "image": self._image.preprocessing,
            "text": self._text.preprocessing,
            "joint": "learned fusion" if config.fusion else f"mean, text {config.text_weight}",
            "hubs": config.hubness_power,
        }
        digest = hashlib.blake2b(digest_size=16)
        for name in FILES:
            digest.update((folder / name).read_bytes())
        self.fingerprint = digest.hexdigest()
        self._pictures = Recent(self._seen, BLOCK)
        self._closer = Recent(self._closely, BLOCK)

    def preprocess(self, image: Image.Image) -> np.ndarray:
        """One RGB picture -> uint8 (3, S, S), the whole of it."""
        return self._image.preprocess(image)

    @torch.inference_mode()
    def encode_images(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """B outputs of `preprocess` -> (B, D) float32, unit rows."""
        if not pixels:
            return np.zeros((0, self.dim), np.float32)
        pooled, _ = self._pictures(pixels)
        return _whole(self._network.image_vectors(pooled))

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """B texts -> (B, D) float32, unit rows."""
        network = self._network
        rows = [network.text_vectors(each.pooled, network.bag_of_words(each.ids))
                for each in self._texts(texts)]  # fmt: skip
        return _whole(torch.cat(rows)) if rows else np.zeros((0, self.dim), np.float32)

    @torch.inference_mode()
    def encode_pairs(
        self,
        image: np.ndarray,
        text: np.ndarray,
        pixels: Sequence[np.ndarray],
        texts: Sequence[str],
    ) -> np.ndarray:
        """B pairs -> (B, D) float32 unit rows: fused where the fusion beat the mean on samples held
        out, else their weighted mean; hubs shortened."""
        network = self._network
        device = network.word_prior.device
        v, t = (torch.from_numpy(each[:, :-1]).to(device) for each in (image, text))
        if network.fusion is None or not len(texts):
            return network.reduce_hubness(network.mean(t, v)).cpu().numpy()
        _, patches = self._pictures(pixels)
        rows = []
        for at, told in zip(range(0, len(texts), BLOCK), self._texts(texts), strict=True):
            some = slice(at, at + BLOCK)
            said = network.text_modality(told.tokens, told.mask, t[some])
            rows.append(network.fuse(said, network.image_modality(patches[some], v[some])))
        return network.reduce_hubness(torch.cat(rows)).cpu().numpy()

    @torch.inference_mode()
    def match_pairs(self, pixels: Sequence[np.ndarray], texts: Sequence[str]) -> np.ndarray:
        """B outputs of `preprocess`, B texts -> (B,) float32, the log odds that text i tells of
        picture i."""
        if not len(texts):
            return np.zeros(0, np.float32)
        network = self._network
        pictures = {id(array): array for array in pixels}  # each once, and so the texts
        pooled, _ = self._closer(list(pictures.values()))
        seen = network.image_evidence(pooled)
        said = list(dict.fromkeys(texts))
        features = self._texts(said)
        held = network.bag_of_words([ids for each in features for ids in each.ids])
        vectors = network.text_vectors(torch.cat([each.pooled for each in features]), held)
        row_of = {key: row for row, key in enumerate(pictures)}
        column_of = {text: column for column, text in enumerate(said)}
        rows = torch.tensor([row_of[id(array)] for array in pixels], device=held.device)
        columns = torch.tensor([column_of[text] for text in texts], device=held.device)
        logits = []
        for i, j in zip(rows.split(BLOCK), columns.split(BLOCK), strict=True):
            looked_at, i = i.unique(return_inverse=True)
            read, j = j.unique(return_inverse=True)
            traits = network.match_features(vectors[read], held[read], seen[looked_at])
            logits.append(network.match_logits(traits)[j, i])
        return torch.cat(logits).cpu().numpy()

    def _seen(self, pixels: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Pooled (B, D) and tokens (B, N, D')."""
        told = self._image(pixels)
        return told.pooled, told.tokens

    def _closely(self, pixels: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Pooled features as matching takes them (B, D), twice."""
        close = self._image.augmented(pixels, self._image(pixels).pooled)
        return close, close

    def _texts(self, texts: Sequence[str]) -> list[TextFeatures]:
        """Through the text tower, BLOCK at a time."""
        return [self._text(texts[at : at + BLOCK]) for at in range(0, len(texts), BLOCK)]


def _whole(vectors: Tensor) -> np.ndarray:
    """Vectors of pictures or texts (B, D - 1) -> (B, D), with nothing where joint ones have how
    much of a hub they are."""
    return functional.pad(vectors, (0, 1)).cpu().numpy()

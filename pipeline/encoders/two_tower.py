"""`two-tower:DIR`: an image model and a text model that others trained, joined by what
`chiasm train two-tower` learned. The towers stay where they were; that they are still the
same is checked by their fingerprints.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from chiasm.pipeline.encoders.base import (
    BaseEncoder,
    image_and_text,
    model_folder,
    require_modality,
)
from chiasm.pipeline.encoders.explain_two_tower import TwoTowerMapper
from chiasm.pipeline.encoders.explainer import DEFAULT, Explanation
from chiasm.pipeline.encoders.explaining import explain
from chiasm.pipeline.encoders.protocols import JOINT, Array, Encoded, Input
from chiasm.pipeline.errors import EncoderError
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.records import IMAGE, TEXT
from chiasm.pipeline.two_tower.checkpoint import FILES, load_two_tower
from chiasm.pipeline.two_tower.frozen_towers import ImageTower, TextTower

BLOCK = 64  # pictures or texts of one forward pass


def load(model: str, settings: EncoderSettings) -> TwoTowerEncoder:
    """The encoder of a model folder. Raises EncoderError for a folder that holds none, and where
    a tower is gone or has become another."""
    return TwoTowerEncoder(model_folder("two-tower", model).resolve(), settings)


class TwoTowerEncoder(BaseEncoder):
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
        self.modalities = {IMAGE: Input(side=self._image.side), TEXT: Input()}
        self.dims = dict.fromkeys((IMAGE, TEXT, JOINT), config.dim)
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
        self._mapper = TwoTowerMapper(self._network, self._image, self._text)
        self.methods = self._mapper.methods

    def preprocess(self, modality: str, raw: Any) -> Any:
        """A picture uint8 (H, W, 3) -> uint8 (3, S, S), the whole of it. A text stays as it is."""
        require_modality(self, modality)
        return self._image.preprocess(raw) if modality == IMAGE else raw

    @torch.inference_mode()
    def encode(self, modality: str, items: Sequence[Any]) -> Encoded:
        """B outputs of `preprocess` -> B rows; the state is what a fusion reads of them. Tokens
        that a fusion does not attend to count as cut: the joint vector knows of them by the text's
        vector alone."""
        require_modality(self, modality)
        if not len(items):
            return Encoded(np.zeros((0, self.dims[modality]), np.float32))
        blocks = [items[start : start + BLOCK] for start in range(0, len(items), BLOCK)]
        network, cut = self._network, None
        if modality == IMAGE:
            pictures = [self._image(block) for block in blocks]
            vectors = network.image_vectors(torch.cat([item.pooled for item in pictures]))
            tokens = torch.cat([item.tokens for item in pictures])
            mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        else:
            texts = [self._text(block) for block in blocks]
            vectors = torch.cat(
                [
                    network.text_vectors(item.pooled, network.bag_of_words(item.ids))
                    for item in texts
                ]
            )
            tokens = _padded([item.tokens for item in texts])
            mask = _padded([item.mask for item in texts])
            cut = np.concatenate([item.cut for item in texts])
            if network.fusion is not None:
                cut += np.concatenate([item.unattended for item in texts])
        state = Tokens(tokens, mask) if network.fusion is not None else None
        return Encoded(_with_hub_dimension(vectors), tokens_cut=cut, state=state)

    @torch.inference_mode()
    def encode_joint(self, parts: Mapping[str, Encoded]) -> Array:
        """B pairs -> (B, D) float32 unit rows: fused where a fusion shipped, else their mean, which
        is even but in formats 6 and 7; hubs shortened."""
        network = self._network
        device = network.word_prior.device
        image, text = (
            torch.from_numpy(parts[modality].vectors[:, :-1]).to(device)
            for modality in (IMAGE, TEXT)
        )
        words, patches = parts[TEXT].state, parts[IMAGE].state
        if not isinstance(words, Tokens) or not isinstance(patches, Tokens) or not len(text):
            return network.reduce_hubness(network.mean(text, image)).cpu().numpy()
        rows = []
        for start in range(0, len(text), BLOCK):
            some = slice(start, start + BLOCK)
            length = int(words.mask[some].any(0).sum())  # tokens come first, padding behind them
            text_input = network.text_modality(
                words.values[some, :length], words.mask[some, :length], text[some]
            )
            rows.append(
                network.fuse(text_input, network.image_modality(patches.values[some], image[some]))
            )
        return network.reduce_hubness(torch.cat(rows)).cpu().numpy()

    @torch.inference_mode()
    def match(
        self, a: tuple[str, Sequence[Any]], b: tuple[str, Sequence[Any]], pairs: Array
    ) -> Array:
        """Outputs of `preprocess` of pictures and of texts, pairs (P, 2) of their indices -> (P,)
        float32, the log odds that the text is true of the picture."""
        pixels, texts, pairs = image_and_text(self, a, b, pairs)
        if not len(pairs):
            return np.zeros(0, np.float32)
        network = self._network
        images, image_rows = np.unique(pairs[:, 0], return_inverse=True)
        strings, text_rows = np.unique(pairs[:, 1], return_inverse=True)
        evidence = network.image_evidence(self._augmented([pixels[i] for i in images]))
        features = [
            self._text([texts[j] for j in strings[start : start + BLOCK]])
            for start in range(0, len(strings), BLOCK)
        ]
        bags = network.bag_of_words([ids for item in features for ids in item.ids])
        vectors = network.text_vectors(torch.cat([item.pooled for item in features]), bags)
        logits = []
        for start in range(0, len(pairs), BLOCK):
            i = torch.from_numpy(image_rows[start : start + BLOCK]).to(bags.device)
            j = torch.from_numpy(text_rows[start : start + BLOCK]).to(bags.device)
            some_images, i = i.unique(return_inverse=True)
            some_texts, j = j.unique(return_inverse=True)
            of_pairs = network.match_features(
                vectors[some_texts], bags[some_texts], evidence[some_images]
            )
            logits.append(network.match_logits(of_pairs)[j, i])
        return torch.cat(logits).cpu().numpy()

    def explain(
        self, pictures: Sequence[Array], texts: Sequence[str], method: str = DEFAULT
    ) -> list[Explanation]:
        """See the protocol `Explainer`. Words are always explained by erasure."""
        return explain(self, self, self._mapper, pictures, texts, method)

    def _augmented(self, pixels: Sequence[np.ndarray]) -> Tensor:
        """Pooled features (B, D) with test-time augmentation, as matching takes them."""
        rows = []
        for start in range(0, len(pixels), BLOCK):
            block = pixels[start : start + BLOCK]
            rows.append(self._image.augmented(block, self._image(block).pooled))
        return torch.cat(rows)


@dataclass(frozen=True)
class Tokens:
    """What a fusion reads of B items: values (B, T, D), mask (B, T) bool."""

    values: Tensor
    mask: Tensor

    def take(self, rows: Array) -> Tokens:
        return Tokens(self.values[rows], self.mask[rows])


def _padded(blocks: Sequence[Tensor]) -> Tensor:
    """Blocks (B_i, T_i, ...) -> (B, T, ...), zeros behind the shorter ones."""
    longest = max(block.shape[1] for block in blocks)
    rows = []
    for block in blocks:
        padding = block.new_zeros(len(block), longest - block.shape[1], *block.shape[2:])
        rows.append(torch.cat([block, padding], dim=1))
    return torch.cat(rows)


def _with_hub_dimension(vectors: Tensor) -> Array:
    """Vectors of pictures or texts (B, D - 1) -> (B, D), zero where joint ones have how much of a
    hub they are."""
    return functional.pad(vectors, (0, 1)).cpu().numpy()

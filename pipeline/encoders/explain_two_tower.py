"""What two frozen towers give for explanations: maps of the image tower's tokens. Words are
explained by erasure alone, as a SentenceTransformer pools as it likes.

    r_j = sum_c dS / dx_jc x_jc      Draelos and Carin, Use HiResCAM instead of Grad-CAM for
                                     Faithful Explanations of Convolutional Neural Networks, 2020

is the form for networks without attention; x_j is what they have at place j before they pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from chiasm.pipeline.encoders.explain_huggingface import attention_layers, relevance
from chiasm.pipeline.encoders.explainer import DEFAULT, GRAD_ECLIP, HIRES_CAM, LEGRAD, Box
from chiasm.pipeline.encoders.explaining import Maps
from chiasm.pipeline.encoders.words import Span
from chiasm.pipeline.model.explain import Site, gradients, record
from chiasm.pipeline.pretrained.image_processing import WHOLE
from chiasm.pipeline.two_tower.frozen_towers import ImageTower, TextTower
from chiasm.pipeline.two_tower.network import TwoTowerNetwork


class TwoTowerMapper:
    """See the protocol `Mapper`."""

    def __init__(self, network: TwoTowerNetwork, image: ImageTower, text: TextTower) -> None:
        self._network, self._image, self._text = network, image, text
        self._layers = attention_layers(image.network)

    @property
    def methods(self) -> tuple[str, ...]:
        """As `Explainer.methods`."""
        by_attention = (GRAD_ECLIP, LEGRAD) if self._layers else (HIRES_CAM,)
        return (DEFAULT, *by_attention)

    def token_spans(self, text: str) -> tuple[list[Span], int]:
        """Every character for itself: in scripts without spaces each of them is a word."""
        return [(at, at + 1) for at in range(len(text))], len(text)

    def maps(self, items: Sequence[Any], texts: Sequence[str], method: str) -> Maps:
        network = self._network
        with torch.no_grad():
            features = self._text(texts)
            text = network.text_vectors(features.pooled, network.bag_of_words(features.ids))
        with torch.enable_grad(), record(self._layers) as sites:
            pooled, states = self._image.states(items, differentiable=True)
            score = (network.image_vectors(pooled) * text.clone()).sum(1)
            if method == HIRES_CAM:
                (slope,) = torch.autograd.grad(score.sum(), [states])
                found = (slope.float() * states.detach().float()).sum(1)
            else:
                found = _by_attention(sites, gradients(score, sites), method)
        return Maps(list(found.cpu().numpy()))

    def box(self, width: int, height: int) -> Box:
        return WHOLE


def _by_attention(sites: Sequence[Site], found: Sequence[Tensor], method: str) -> Tensor:
    """(B, h, w) of a square grid, which is the last h w tokens."""
    rows, tokens = sites[-1].value.shape[:2]
    side = int(tokens**0.5)
    explained = torch.zeros(rows, tokens, dtype=torch.bool, device=found[-1].device)
    explained[:, -side * side :] = True
    values = relevance(sites, found, explained, method)
    return values[:, -side * side :].unflatten(1, (side, side))

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

from chiasm.pipeline.encoders.explain_huggingface import attention_layers, layers_read, relevance
from chiasm.pipeline.encoders.explainer import DEFAULT, GRAD_ECLIP, HIRES_CAM, LEGRAD, Box
from chiasm.pipeline.encoders.explaining import Maps
from chiasm.pipeline.encoders.words import Span
from chiasm.pipeline.errors import UsageError
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
        by_states = method == HIRES_CAM
        layers = [] if by_states else layers_read(self._layers, method)
        with torch.enable_grad(), record(layers) as sites:
            pooled, states = self._image.states(items, differentiable=by_states)
            if not by_states:
                self._require_one_shape(sites, len(items), method)
            score = (network.image_vectors(pooled) * text.clone()).sum(1)
            if by_states:
                (slope,) = torch.autograd.grad(score.sum(), [states])
                found = _on_grid(slope.float() * states.detach().float())
            else:
                found = _by_attention(sites, gradients(score, sites), method)
        return Maps(list(found.cpu().numpy()))

    def _require_one_shape(self, sites: Sequence[Site], pictures: int, method: str) -> None:
        """UsageError for attention that is over windows, or over other tokens in another layer."""
        shapes = {tuple(site.value.shape[:2]) for site in sites}
        if len(shapes) == 1 and min(shapes)[0] == pictures:
            return
        raise UsageError(
            f"method {method}",
            expected="attention over all tokens of a picture, the same in every layer it reads",
            found=f"an image tower ({self._image.folder.name}) with windows or grids of its own",
            do=f"take --method {GRAD_ECLIP}" if method == LEGRAD else "take another image tower",
        )

    def box(self, width: int, height: int) -> Box:
        return WHOLE


def _on_grid(products: Tensor) -> Tensor:
    """(B, D', h, w), or tokens (B, S, D') of which the last are a square grid -> summed over the
    channels, (B, h, w); (B, D') without a grid -> (B, 1, 1)."""
    if products.ndim == 2:
        return products.sum(1)[:, None, None]
    if products.ndim == 4:
        return products.sum(1)
    side = int(products.shape[1] ** 0.5)
    return products.sum(2)[:, -side * side :].unflatten(1, (side, side))


def _by_attention(sites: Sequence[Site], found: Sequence[Tensor], method: str) -> Tensor:
    """(B, h, w) of a square grid, which is the last h w tokens."""
    rows, tokens = sites[-1].value.shape[:2]
    side = int(tokens**0.5)
    explained = torch.zeros(rows, tokens, dtype=torch.bool, device=found[-1].device)
    explained[:, -side * side :] = True
    values = relevance(sites, found, explained, method)
    return values[:, -side * side :].unflatten(1, (side, side))

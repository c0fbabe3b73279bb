"""What dual encoders of transformers give for explanations: maps of their patches and tokens.

CLIP pools its first token, SigLIP by attention of a learned query: either way the layer to explain
is the last one with attention, and gradients say which of its outputs are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from chiasm.pipeline.encoders.explainer import LEGRAD, Box
from chiasm.pipeline.encoders.explaining import Maps
from chiasm.pipeline.encoders.words import Span
from chiasm.pipeline.model.explain import Layer, Site, grad_eclip, gradients, legrad, record
from chiasm.pipeline.pretrained.image_processing import ImageProcessing


def attention_layers(network: nn.Module) -> list[Layer | nn.MultiheadAttention]:
    """The attention layers of a model of transformers, in order; those whose queries and keys have
    different widths are left out."""
    layers: list[Layer | nn.MultiheadAttention] = []
    for module in network.modules():
        if isinstance(module, nn.MultiheadAttention):
            layers.append(module)
            continue
        parts = [getattr(module, name, None) for name in ("q_proj", "k_proj", "v_proj")]
        out = getattr(module, "out_proj", getattr(module, "o_proj", None))
        heads = getattr(module, "num_heads", getattr(module, "num_attention_heads", None))
        linear = [part for part in (*parts, out) if isinstance(part, nn.Linear)]
        if len(linear) == 4 and len({part.out_features for part in linear[:3]}) == 1 and heads:
            query, key, value, out = linear
            layers.append(Layer(query, key, value, out, heads))
    return layers


def text_layers(tower: nn.Module) -> list[Layer | nn.MultiheadAttention]:
    """The attention layers of a text tower, those of the BERT family too, which have the queries,
    keys and values in a module `self` and the last projection in one beside it."""
    layers = attention_layers(tower)
    for module in [] if layers else tower.modules():
        inner: Any = getattr(module, "self", None)
        parts = [getattr(inner, name, None) for name in ("query", "key", "value")]
        parts.append(getattr(getattr(module, "output", None), "dense", None))
        linear = [part for part in parts if isinstance(part, nn.Linear)]
        if len(linear) == 4:
            query, key, value, out = linear
            layers.append(Layer(query, key, value, out, inner.num_attention_heads))
    return layers


def layers_read(
    layers: Sequence[Layer | nn.MultiheadAttention], method: str
) -> Sequence[Layer | nn.MultiheadAttention]:
    """Those that `relevance` reads: what comes before the first layer recorded keeps no graph."""
    return layers if method == LEGRAD else layers[-1:]


def relevance(
    sites: Sequence[Site], found: Sequence[Tensor], explained: Tensor, method: str
) -> Tensor:
    """Of tokens (B, S), by LeGrad over all layers, or by Grad-ECLIP of the last one."""
    if method == LEGRAD:
        return legrad(sites, found, explained)
    return grad_eclip(sites[-1], found[-1], explained)


class HuggingFaceMapper:
    """See the protocol `Mapper`. tokens: texts -> arguments of the text tower; lower: whether they
    are lowercased first."""

    def __init__(
        self,
        network: Any,
        tokens: Any,
        pixels: ImageProcessing,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._network, self._tokens, self._pixels = network, tokens, pixels
        self._device, self._dtype = device, dtype

    def token_spans(self, text: str) -> tuple[list[Span], int]:
        (places,) = self._tokens.places([text])
        spans = [(start, end) for start, end, _ in places]
        whole = self._tokens.places([text], cut=False)[0]
        return spans, len(text) if len(whole) == len(spans) else spans[-1][1] if spans else 0

    def maps(self, items: Sequence[Any], texts: Sequence[str], method: str) -> Maps:
        network = self._network
        inputs = self._pixels.inputs(items, self._device, self._dtype)
        tokens = {name: value.to(self._device) for name, value in self._tokens(texts).items()}
        of_image = layers_read(attention_layers(network.vision_model), method)
        of_text = layers_read(text_layers(network.text_model), method)
        with torch.enable_grad(), record([*of_image, *of_text]) as sites:
            image = functional.normalize(
                network.get_image_features(**inputs).pooler_output.float(), dim=-1
            )
            text = functional.normalize(
                network.get_text_features(**tokens).pooler_output.float(), dim=-1
            )
            found = gradients((image * text).sum(1), sites)
        cut = len(of_image)
        grids = self._grids(items, inputs)
        width = sites[cut - 1].value.shape[1]
        first = 0 if "spatial_shapes" in inputs else width - grids[0][0] * grids[0][1]
        place = torch.arange(width, device=self._device) - first
        counts = torch.tensor([h * w for h, w in grids], device=self._device)
        patches = relevance(
            sites[:cut], found[:cut], (place >= 0) & (place < counts[:, None]), method
        )
        places = [[at for *_, at in row] for row in self._tokens.places(texts)]
        explained = torch.zeros(sites[-1].value.shape[:2], dtype=torch.bool, device=self._device)
        for row, some in enumerate(places):
            explained[row, some] = True
        of_tokens = relevance(sites[cut:], found[cut:], explained, method).cpu().numpy()
        return Maps(
            [
                row[first : first + h * w].reshape(h, w)
                for row, (h, w) in zip(patches.cpu().numpy(), grids, strict=True)
            ],
            [row[some] for row, some in zip(of_tokens, places, strict=True)],
        )

    def _grids(self, items: Sequence[Any], inputs: dict[str, Tensor]) -> list[tuple[int, int]]:
        """Rows and columns of patches of each picture."""
        if "spatial_shapes" in inputs:
            return [(int(h), int(w)) for h, w in inputs["spatial_shapes"].tolist()]
        side = items[0].shape[-1] // self._network.config.vision_config.patch_size
        return [(side, side)] * len(items)

    def box(self, width: int, height: int) -> Box:
        return self._pixels.covered(width, height)

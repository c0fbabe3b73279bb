"""Why a picture for a text: how much each patch and each token adds to the cosine of the vectors.

    Grad-ECLIP   r_j = sum_i l_ij w_i . v_j      Zhao et al., Gradient-based Visual Explanation for
                 Transformer-based CLIP, ICML 2024

of the last attention layer: w_i is the gradient of the score with respect to what query i attends
to (zero for all but the pooled token where only that one is read later on), v_j the values, l_ij
the cosine of q_i and k_j scaled to [0, 1] over the tokens explained: attention's own weights are
too sparse for a map.

    LeGrad       r_j = sum_layers mean_hi max(0, dS / dA_hij)      Bousselham et al., LeGrad: An
                 Explainability Method for Vision Transformers via Feature Formation Sensitivity,
                 2024; here S is the score itself for every layer

Attention is o_hi = sum_j A_hij v_hj, so dS / dA_hij = w_hi . v_hj: both need queries, keys, values
and the gradient of what comes out, never the matrices A, and fused kernels may compute the rest.

`Pool` adds the mean of its tokens t_j to what its query attends to. Both get the same gradient g,
so that a token adds  (l_j / sum l) w . v_j + g . t_j / T.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from chiasm.pipeline.model.attention import Attention
from chiasm.pipeline.model.blocks import Block
from chiasm.pipeline.model.joint import JointNetwork
from chiasm.pipeline.model.towers import PAD, ImageTower, TextTower

EPSILON = 1e-12  # spans and sums below it count as none


@dataclass(frozen=True)
class Layer:
    """The linear modules of one attention layer of H heads. key and value may be one module that
    gives both, side by side."""

    query: nn.Module
    key: nn.Module
    value: nn.Module
    out: nn.Module
    heads: int

    @classmethod
    def of(cls, attention: Attention) -> Layer:
        """Those of one of our own."""
        joined = attention.key_value
        return cls(attention.query, joined, joined, attention.out, attention.heads)


@dataclass
class Site:
    """What one attention layer computed, in the order of heads: query (B, T, D), key and value
    (B, S, D), context (B, S, D), from which those were made, and output (B, T, D') after the last
    projection, of weight `out` (D', D)."""

    heads: int
    out: Tensor
    query: Tensor = field(init=False)
    key: Tensor = field(init=False)
    value: Tensor = field(init=False)
    context: Tensor = field(init=False)
    output: Tensor = field(init=False)

    def before_out(self, gradient: Tensor) -> Tensor:
        """The gradient of a score with respect to `output` (B, T, D') -> w (B, T, D), with respect
        to what was attended to, before the last projection."""
        return gradient @ self.out.to(gradient.dtype)


@contextmanager
def record(layers: Sequence[Layer | nn.MultiheadAttention]) -> Iterator[list[Site]]:
    """What the layers compute in this thread while the context is open, one `Site` each; a later
    forward pass replaces an earlier one. Outputs get gradients where nothing before them has any:
    weights may be frozen. Hooks ignore other threads, which use the same modules."""
    thread = threading.get_ident()
    handles: list[Any] = []

    def on(module: nn.Module, keep: Callable[[tuple[Tensor, ...], Any], Any]) -> None:
        def hook(_: nn.Module, given: tuple[Tensor, ...], made: Any) -> Any:
            return keep(given, made) if threading.get_ident() == thread else None

        handles.append(module.register_forward_hook(hook))

    sites = []
    for layer in layers:
        if isinstance(layer, Layer):
            site = Site(layer.heads, _weight(layer.out))
            on(layer.query, partial(_keep_query, site))
            on(layer.key, partial(_keep_key, site, layer.key is layer.value))
            on(layer.value, partial(_keep_value, site, layer.key is layer.value))
            on(layer.out, partial(_keep_output, site))
        else:
            site = Site(layer.num_heads, layer.out_proj.weight.detach())
            on(layer, partial(_keep_all, site, layer))
        sites.append(site)
    try:
        yield sites
    finally:
        for handle in handles:
            handle.remove()


def _weight(module: nn.Module) -> Tensor:
    assert isinstance(module.weight, Tensor)
    return module.weight.detach()


def _keep_query(site: Site, _: tuple[Tensor, ...], made: Tensor) -> None:
    site.query = made.detach()


def _keep_key(site: Site, joined: bool, _: tuple[Tensor, ...], made: Tensor) -> None:
    site.key = made.detach().chunk(2, dim=-1)[0] if joined else made.detach()


def _keep_value(site: Site, joined: bool, given: tuple[Tensor, ...], made: Tensor) -> None:
    site.context = given[0].detach()
    site.value = made.detach().chunk(2, dim=-1)[1] if joined else made.detach()


def _keep_output(site: Site, _: tuple[Tensor, ...], made: Tensor) -> Tensor:
    site.output = made if made.requires_grad else made.detach().requires_grad_()
    return site.output


def _keep_all(
    site: Site, layer: nn.MultiheadAttention, given: tuple[Tensor, ...], made: tuple[Tensor, Any]
) -> tuple[Tensor, Any]:
    """The same of torch's own module, batch first: its projections are no modules that are
    called."""
    weight, bias = layer.in_proj_weight.detach(), layer.in_proj_bias
    biases = torch.zeros(len(weight), device=weight.device) if bias is None else bias.detach()
    site.query, site.key, site.value = (
        functional.linear(x.detach(), w, b.to(w.dtype))
        for x, w, b in zip(given, weight.chunk(3), biases.chunk(3), strict=False)
    )
    site.context = given[2].detach()
    return _keep_output(site, given, made[0]), made[1]


def gradients(score: Tensor, sites: Sequence[Site]) -> list[Tensor]:
    """Of scores (B,), each of its own row alone, with respect to the output of each site:
    (B, T, D') float32 each, zero where a site has no part in the score."""
    outputs = [site.output for site in sites]
    found = torch.autograd.grad(score.sum(), outputs, allow_unused=True, materialize_grads=True)
    return [gradient.float() for gradient in found]


def grad_eclip(site: Site, gradient: Tensor, explained: Tensor) -> Tensor:
    """The relevance of each token by one layer, with its sign; the module's docstring has the
    formula. gradient (B, T, D'), as `gradients` gives it; explained (B, S) bool -> (B, S)
    float32, 0 where not explained."""
    return _attended(site, gradient, loosened(site, explained)) * explained


def pooled_relevance(site: Site, gradient: Tensor, explained: Tensor, mask: Tensor) -> Tensor:
    """The same for a `Pool`: site of its attention, to whose output it adds the mean of the tokens
    of mask (B, S)."""
    weights = loosened(site, explained)
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=EPSILON)
    of_mean = (gradient @ site.context.float().mT)[:, 0] / mask.sum(1, keepdim=True)
    return (_attended(site, gradient, weights) + of_mean) * explained


def _attended(site: Site, gradient: Tensor, weights: Tensor) -> Tensor:
    """sum_i weights_ij w_i . v_j: (B, T, S) -> (B, S)."""
    return (weights * (site.before_out(gradient) @ site.value.float().mT)).sum(1)


def loosened(site: Site, explained: Tensor) -> Tensor:
    """Grad-ECLIP's spatial weights l: cosines of queries and keys, scaled to [0, 1] over the tokens
    explained (B, S), 1 for all where they are equal -> (B, T, S) float32, 0 where not explained."""
    query, key = (functional.normalize(x.float(), dim=-1) for x in (site.query, site.key))
    cosine, hidden = query @ key.mT, ~explained[:, None, :]
    least = cosine.masked_fill(hidden, torch.inf).amin(-1, keepdim=True)
    span = cosine.masked_fill(hidden, -torch.inf).amax(-1, keepdim=True) - least
    scaled = torch.where(span > EPSILON, (cosine - least) / span.clamp(min=EPSILON), 1.0)
    return scaled.masked_fill(hidden, 0)


def legrad(sites: Sequence[Site], found: Sequence[Tensor], explained: Tensor) -> Tensor:
    """LeGrad over layers: sites and their `gradients` -> (B, S) float32 >= 0. The mean over queries
    counts those that are explained, so that padding changes nothing."""
    total = torch.zeros(explained.shape, device=explained.device)
    counted = explained.sum(1, keepdim=True).clamp(min=1)
    for site, gradient in zip(sites, found, strict=True):
        slope = attention_gradient(site, gradient).clamp(min=0).mean(1)  # (B, T, S)
        total = total + slope.sum(1) / (counted if slope.shape[1] == slope.shape[2] else 1)
    return total * explained


def attention_gradient(site: Site, gradient: Tensor) -> Tensor:
    """dS / dA (B, H, T, S) of one layer, from the gradient at its output (B, T, D')."""
    w, v = (
        x.float().unflatten(-1, (site.heads, -1)).transpose(1, 2)
        for x in (site.before_out(gradient), site.value)
    )
    return w @ v.mT


@dataclass(frozen=True)
class Relevance:
    """patches (B, N) and tokens (B, T) float32, with signs."""

    patches: Tensor
    tokens: Tensor


def max_sim(cosines: Tensor, explained: Tensor) -> Relevance:
    """Late interaction taken apart (Khattab and Zaharia, ColBERT, 2020): cosines (B, T, N) of
    tokens and patches, explained (B, T) bool -> of each token max_n, and what each patch adds to
    the sum of these over the tokens explained."""
    most, nearest = (cosines * explained[..., None]).max(-1)  # (B, T)
    none = cosines.new_zeros(cosines.shape[0], cosines.shape[2])
    return Relevance(none.scatter_add(1, nearest, most), most)


def cosine_relevance(
    model: JointNetwork, pixels: Tensor, ids: Tensor, over_layers: bool = False
) -> Relevance:
    """pixels uint8 (B, 3, S, S) and ids int64 (B, T), pair by pair -> what their cosine rests on,
    by Grad-ECLIP, or over all layers by LeGrad. PAD, the first and the last token have none."""
    layers = [_layers(model.image), _layers(model.text)]
    if not over_layers:  # what comes before the first layer recorded keeps no graph
        layers = [some[-1:] for some in layers]
    with torch.enable_grad(), record([*layers[0], *layers[1]]) as sites:
        image, text = model.encode_image(pixels)[1], model.encode_text(ids)[1]
        found = gradients((image * text).sum(1), sites)
    explained = inner_tokens(ids)
    every = torch.ones(len(pixels), model.config.image.patches, device=ids.device).bool()
    cut = len(layers[0])
    if over_layers:
        return Relevance(
            legrad(sites[:cut], found[:cut], every), legrad(sites[cut:], found[cut:], explained)
        )
    return Relevance(
        pooled_relevance(sites[cut - 1], found[cut - 1], every, every),
        pooled_relevance(sites[-1], found[-1], explained, ids != PAD),
    )


def token_cosines(model: JointNetwork, pixels: Tensor, ids: Tensor) -> Tensor:
    """Cosines of the tokens that the fusion takes, which are trained by late interaction:
    (B, T, N), pair by pair. Needs a fusion."""
    assert model.fusion is not None, "a model of two towers alone"
    with torch.no_grad():
        sides = (model.text(ids)[0], model.image(pixels)[0])
        words, patches = (
            functional.normalize(model.fusion.project(i, tokens).float(), dim=-1)
            for i, tokens in enumerate(sides)
        )
    return words @ patches.mT


def _layers(tower: ImageTower | TextTower) -> list[Layer]:
    """Of a tower's blocks, then of its pooling."""
    blocks = [block.attention for block in tower.blocks if isinstance(block, Block)]
    return [Layer.of(attention) for attention in (*blocks, tower.pool.attention)]


def inner_tokens(ids: Tensor) -> Tensor:
    """(B, T) bool: which tokens are neither PAD nor the first or the last of their text."""
    place = torch.arange(ids.shape[1], device=ids.device)
    return (place > 0) & (place < (ids != PAD).sum(1, keepdim=True) - 1)

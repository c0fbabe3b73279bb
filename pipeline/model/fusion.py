"""Fusion: token sequences of several modalities -> fused tokens and one joint vector.

Four ways, one skeleton around them. Each modality's tokens are projected to one width and
get a type embedding. All other weights are shared, so a third modality costs a projection and a
type embedding:

    concat           [x_1; ...; x_M], then self attention over all: single-stream, as in UNITER
                     (Chen et al., 2020)
    add              z = sum_m r(x_m), r the K tokens that K learned queries find in a sequence of
                     any length (Jaegle et al., Perceiver, 2021), then self attention over z
    gated            z = sum_m g_m * r(x_m), g = softmax_m(W r(x_m)) element by element: a gated
                     multimodal unit (Arevalo et al., 2017), then self attention over z
    cross_attention  every x_m attends to itself and to all the others: co-attention in both
                     directions (Lu et al., ViLBERT, 2019; Tan and Bansal, LXMERT, 2019)

The joint vector lies in the space of the modalities' own vectors v_m and begins as their weighted
mean:

    j = normalise( sum_m w_m v_m + r / sqrt(1 + |r|^2) ),   r = R s,   R = 0 at the start

w being fixed weights, in each row made to sum to 1 over the modalities that it has, and s the mean
of what is pooled from the fused tokens of each modality, or, where all have become one sequence,
what is pooled from that. The learned part is shorter than 1, as the mean of unit vectors is, so
that neither can drown the other: an error that only one of them makes is outvoted. The weights are
those of the best mean, which the training of fusion begins as. A modality that a row lacks has no
tokens and no weight in the joint vector.

With `FusionConfig.residual_of_vectors` the learned part reads each modality by itself: what is
pooled from its fused tokens (or from the one sequence), and its vector with elements of size 1,

    r = R [s_1; ...; s_M; sqrt(E) v_1; ...; sqrt(E) v_M],   r = 0 in rows that lack a modality

so that a row with one modality alone is its vector.

Models made before the bound (`FusionConfig.bounded_residual` is False) have

    j = normalise( sum_m w_m v_m + R s ),   w = softmax_m(G s_m),   G = R = 0 at the start

with equal weights where there is one sequence. R s grows to some twenty times the mean, which then
means nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from chiasm.pipeline.model.attention import Attention
from chiasm.pipeline.model.blocks import Block, CrossBlock
from chiasm.pipeline.model.config import FusionConfig
from chiasm.pipeline.model.pooling import Pool

LEAST_WEIGHT = 1e-3  # of a modality in the mean: a row that has it alone is its vector
LEAST_SUM = 1e-6  # of a row's weights: a row of no modality at all divides by no zero


@dataclass(frozen=True)
class Modality:
    """One modality of a batch, or what a row has of it.

    tokens (B, T, D_m); mask (B, T) bool, True where there is a token, all False in rows that lack
    the modality; vector (B, E) float32, unit rows, ignored in rows that lack the modality.
    """

    tokens: Tensor
    mask: Tensor
    vector: Tensor

    @property
    def present(self) -> Tensor:
        """(B,) bool: which rows have the modality."""
        return self.mask.any(dim=1)

    def where(self, present: Tensor) -> Modality:
        """The same, masked out in rows where `present` (B,) bool is False."""
        return Modality(self.tokens, self.mask & present[:, None], self.vector)

    def take(self, rows: Tensor) -> Modality:
        """Rows (B',) int64 of the batch, in that order."""
        return Modality(self.tokens[rows], self.mask[rows], self.vector[rows])

    @classmethod
    def rows(cls, parts: Sequence[Modality]) -> Modality:
        """The rows of several batches with equally many tokens, one after the other."""
        return cls(
            torch.cat([part.tokens for part in parts]),
            torch.cat([part.mask for part in parts]),
            torch.cat([part.vector for part in parts]),
        )


@dataclass(frozen=True)
class JointParts:
    """What joint vectors are made of: the weighted mean of the vectors (B, E) float32, and what the
    learned part reads (B, F)."""

    mean: Tensor
    read: Tensor


@dataclass(frozen=True)
class Fused:
    """tokens (B, T, D); mask (B, T) bool; joint (B, E) float32, unit rows, and its parts."""

    tokens: Tensor
    mask: Tensor
    joint: Tensor
    joint_parts: JointParts


class Fusion(nn.Module):
    """A list of modalities -> `Fused`, by the mixer of FUSIONS that `config.fusion` names.

    widths: D_m of each modality in the order they are given in. dim: E of the shared space.
    mean_weights: w (M,) of the bounded form; modality_score: G of the other.
    """

    mean_weights: Tensor | None

    def __init__(self, config: FusionConfig, widths: Sequence[int], dim: int) -> None:
        super().__init__()
        width = config.width
        self.input_projections = nn.ModuleList(nn.Linear(item, width) for item in widths)
        self.type_embeddings = nn.Parameter(torch.randn(len(widths), width) * 0.02)
        self.mixer = FUSIONS[config.fusion](config)
        self.pool = Pool(width, config.heads)
        bounded = config.bounded_residual
        equal = torch.full((len(widths),), 1 / len(widths))
        self.register_buffer("mean_weights", equal if bounded else None)
        self.modality_score: nn.Linear | None = None
        if not bounded and not self.mixer.merges:  # merged, no modality is left to weigh
            self.modality_score = nn.Linear(width, 1, bias=False)
        inputs = width
        if config.residual_of_vectors:
            inputs = width * (1 if self.mixer.merges else len(widths)) + dim * len(widths)
        self.reads_vectors = config.residual_of_vectors
        self.residual = nn.Linear(inputs, dim, bias=False)

    def reset_parameters(self) -> None:
        """Initial weights. Matrices as in Glorot and Bengio (2010): narrow layers learn slowly
        from the 0.02 that suits wide ones. The joint vector starts as the mean of the vectors."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            if isinstance(module, CrossBlock):
                module.tie_query_and_key()
        self.reset_to_mean()

    def reset_to_mean(self, weights: Sequence[float] | None = None) -> None:
        """Zero the learned part of the joint vector: it is the mean of the vectors again; with
        these weights (M,), as they are for None. ValueError for weights where the form has
        none that are fixed."""
        nn.init.zeros_(self.residual.weight)
        if self.modality_score is not None:
            nn.init.zeros_(self.modality_score.weight)
        if weights is None:
            return
        if self.mean_weights is None:
            raise ValueError("weights of the mean for a fusion without bounded_residual")
        shares = (torch.tensor(weights) / sum(weights)).clamp(min=LEAST_WEIGHT)
        self.mean_weights.copy_(shares / shares.sum())

    @property
    def is_mean(self) -> bool:
        """Is the learned part of the joint vector zero?"""
        return not self.residual.weight.any()

    def forward(self, modalities: Sequence[Modality | None]) -> Fused:
        """Each modality, None for one that no row has -> the fused batch. Shapes: `Modality`,
        `Fused`. ValueError where all are None."""
        given = [(i, item) for i, item in enumerate(modalities) if item is not None]
        if not given:
            raise ValueError("fusion of no modality at all")
        parts = [self.project(i, item.tokens) for i, item in given]  # (B, T_m, D)
        masks = [item.mask for _, item in given]
        parts, masks = self.mixer(parts, masks)
        made_of = self._joint_parts(parts, masks, given)
        tokens, mask = torch.cat(parts, dim=1), torch.cat(masks, dim=1)
        return Fused(tokens, mask, self.join(made_of), made_of)

    def join(self, made_of: JointParts) -> Tensor:
        """-> joint vectors (B, E) float32, unit rows."""
        residual = self.residual(made_of.read.to(self.residual.weight.dtype)).float()
        if self.mean_weights is not None:
            residual = residual * torch.rsqrt(1 + residual.square().sum(-1, keepdim=True))
        return functional.normalize(made_of.mean + residual, dim=-1)

    def project(self, i: int, tokens: Tensor) -> Tensor:
        """Tokens (B, T, D_i) of modality i -> (B, T, D), the input of the mixer."""
        return self.input_projections[i](tokens) + self.type_embeddings[i]

    def _joint_parts(
        self, parts: list[Tensor], masks: list[Tensor], given: Sequence[tuple[int, Modality]]
    ) -> JointParts:
        """Fused tokens, one part a modality or one for all of them; modalities by their place in
        the list."""
        present = torch.stack([item.present for _, item in given], dim=1)[..., None]  # (B, M, 1)
        pooled = [
            self.pool(part, _unmask_empty_rows(mask)[:, None, None, :])
            for part, mask in zip(parts, masks, strict=True)
        ]
        summaries = torch.stack(pooled, dim=1)  # (B, M or 1, D)
        vectors = torch.stack([item.vector for _, item in given], dim=1)  # (B, M, E)
        vectors = vectors.masked_fill(~present, 0)
        weights = self._weights([i for i, _ in given], present, summaries)
        mean = (weights * vectors).sum(1)
        if not self.reads_vectors:
            counted = present.any(1, keepdim=True) if self.mixer.merges else present
            read = (summaries * counted).sum(1) / counted.sum(1).clamp(min=1)
        elif len(given) < len(self.input_projections):
            read = summaries.new_zeros(len(present), self.residual.in_features)
        else:
            scaled = vectors * vectors.shape[-1] ** 0.5
            read = torch.cat([summaries.flatten(1), scaled.flatten(1).to(summaries.dtype)], dim=1)
            read = read * present.all(1)
        return JointParts(mean, read)

    def _weights(self, places: list[int], present: Tensor, summaries: Tensor) -> Tensor:
        """Places of M modalities, which rows have them (B, M, 1) bool, summaries (B, M or 1, D) ->
        (B, M, 1) float32, in each row of sum 1 over what it has, 0 for what it lacks."""
        if self.mean_weights is not None:
            weights = self.mean_weights[places].float()[:, None] * present
            return weights / weights.sum(1, keepdim=True).clamp(min=LEAST_SUM)
        scores = torch.zeros_like(present, dtype=torch.float32)
        if self.modality_score is not None:
            scores = self.modality_score(summaries).float()
        scores = scores.masked_fill(~present, torch.finfo(torch.float32).min)
        return scores.softmax(dim=1)


class Concat(nn.Module):
    """Self attention over the concatenation of all modalities."""

    merges = False  # its output is one sequence a modality

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        blocks = (Block(config.width, config.heads) for _ in range(config.depth))
        self.blocks = nn.ModuleList(blocks)

    def forward(
        self, parts: list[Tensor], masks: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """M tokens (B, T_m, D), M masks (B, T_m) -> the same shapes."""
        x, mask = torch.cat(parts, dim=1), torch.cat(masks, dim=1)  # (B, T, D), (B, T)
        attended = _unmask_empty_rows(mask)[:, None, None, :]
        for block in self.blocks:
            x = block(x, attended)
        return list(x.split([part.shape[1] for part in parts], dim=1)), masks


class Add(nn.Module):
    """Self attention over the sum of the modalities, each resampled to K tokens."""

    merges = True

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        width, heads = config.width, config.heads
        self.query = nn.Parameter(torch.randn(1, config.slots, width) * width**-0.5)
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(config.depth))

    def forward(
        self, parts: list[Tensor], masks: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """M tokens (B, T_m, D), M masks (B, T_m) -> one (B, K, D), one mask (B, K)."""
        present = torch.stack([mask.any(1) for mask in masks], dim=1)[
            ..., None, None
        ]  # (B, M, 1, 1)
        found = [self._resample(*item) for item in zip(parts, masks, strict=True)]
        x = self.combine(torch.stack(found, dim=1), present)  # (B, K, D)
        for block in self.blocks:
            x = block(x)
        return [x], [present.any(1)[:, 0].expand(-1, x.shape[1])]

    def _resample(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """(B, T, D), (B, T) -> (B, K, D)."""
        query = self.query.expand(len(tokens), -1, -1)
        return self.attention(query, self.norm(tokens), _unmask_empty_rows(mask)[:, None, None, :])

    def combine(self, found: Tensor, present: Tensor) -> Tensor:
        """found (B, M, K, D), present (B, M, 1, 1) -> (B, K, D)."""
        return (found * present).sum(1)


class Gated(Add):
    """As `Add`, each element of each token a convex combination over the modalities."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__(config)
        self.gate = nn.Linear(config.width, config.width)

    def combine(self, found: Tensor, present: Tensor) -> Tensor:
        scores = self.gate(found).masked_fill(~present, torch.finfo(found.dtype).min)
        return (scores.softmax(dim=1) * torch.tanh(found)).sum(1)


class CrossAttention(nn.Module):
    """Every sequence attends to itself, then to all the others."""

    merges = False

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.null_token = nn.Parameter(torch.randn(1, 1, config.width) * 0.02)
        blocks = (CrossBlock(config.width, config.heads) for _ in range(config.depth))
        self.blocks = nn.ModuleList(blocks)

    def forward(
        self, parts: list[Tensor], masks: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """M tokens (B, T_m, D), M masks (B, T_m) -> the same shapes."""
        # Always unmasked: what a sequence attends to where the row has no other modality.
        null_token = self.null_token.expand(len(parts[0]), -1, -1)
        always = torch.ones_like(masks[0][:, :1])
        own = [_unmask_empty_rows(mask)[:, None, None] for mask in masks]
        for block in self.blocks:
            new = []
            for i, part in enumerate(parts):
                others = [null_token, *itertools.chain(parts[:i], parts[i + 1 :])]
                theirs = torch.cat([always, *itertools.chain(masks[:i], masks[i + 1 :])], dim=1)
                new.append(block(part, own[i], torch.cat(others, dim=1), theirs[:, None, None]))
            parts = new
        return parts, masks


FUSIONS = {
    "concat": Concat,
    "add": Add,
    "gated": Gated,
    "cross_attention": CrossAttention,
}


def _unmask_empty_rows(mask: Tensor) -> Tensor:
    """The mask (B, T), all True in rows that were all False: attention over no token is undefined.
    The output of such rows is ignored by way of `Modality.present`."""
    return mask | ~mask.any(dim=1, keepdim=True)

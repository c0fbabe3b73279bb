"""The losses of training, each with its formula.

InfoNCE (van den Oord et al., 2018; in both directions as in CLIP, Radford et al., 2021) takes every
other pair of the batch as a negative. Known false negatives are left out of the sum: a caption may
be true of another picture of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def info_nce(image: Tensor, text: Tensor, scale: Tensor, also_true: Tensor) -> Tensor:
    """Mean of both directions of  -log( e^(s x_i.y_i) / sum_j e^(s x_i.y_j) ).

    image, text (B, E) unit vectors, pair i being row i of both; scale s, a scalar; also_true (B, B)
    bool: caption i is true of picture j, and j then leaves the sum for i unless j = i. -> scalar.
    """
    return contrastive_loss(scale * text @ image.T, also_true)


def contrastive_loss(logits: Tensor, also_true: Tensor) -> Tensor:
    """InfoNCE of given scores: logits (B texts, B images). -> scalar."""
    false_negative = also_true & ~torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    logits = logits.masked_fill(false_negative, -torch.inf)
    target = torch.arange(len(logits), device=logits.device)
    to_image = functional.cross_entropy(logits, target)
    to_text = functional.cross_entropy(logits.T, target)
    return (to_image + to_text) / 2


def any_true_loss(logits: Tensor, true: Tensor) -> Tensor:
    """Mean over queries of  -log( sum_{j true} e^(l_ij) / sum_j e^(l_ij) ): one right answer before
    all wrong ones is enough, whichever it is (Miech et al., End-to-End Learning of Visual
    Representations from Uncurated Instructional Videos, 2020: MIL-NCE).

    logits (B queries, C), true (B, C) bool, at least one in each row. -> scalar.
    """
    right = logits.masked_fill(~true, -torch.inf).logsumexp(dim=1)
    return (logits.logsumexp(dim=1) - right).mean()


def attribute_loss(
    logits: Sequence[Tensor], targets: Tensor, counts: Tensor | None = None
) -> Tensor:
    """Sum over attributes of the mean cross entropy  -log p(target).

    logits: one (B, C, classes) tensor an attribute; targets (B, C, attributes) int64, -1 where
    there is no target, which is ignored; counts (attributes,) float32: by how many targets the sum
    over each attribute is divided, None: by its own. -> scalar.
    """
    if counts is None:
        counts = target_counts(targets)
    attributes = zip(logits, targets.unbind(-1), counts.clamp(min=1), strict=True)
    losses = [
        functional.cross_entropy(
            guess.flatten(0, 1).float(), target.flatten(), ignore_index=-1, reduction="sum"
        )
        / count
        for guess, target, count in attributes
    ]
    return torch.stack(losses).sum()


def target_counts(targets: Tensor) -> Tensor:
    """targets (B, C, attributes) int64, -1 where there is none -> (attributes,) float32."""
    return (targets >= 0).flatten(0, 1).sum(0).float()


def bag_of_words_loss(logits: Tensor, bag: Tensor) -> Tensor:
    """Binary cross entropy  -b log p - (1 - b) log(1 - p), summed over words, mean over the batch.

    logits (B, W); bag int64 (B, W) of 0, 1, or -1 for unknown, which is ignored.
    -> scalar.
    """
    known = bag >= 0
    losses = functional.binary_cross_entropy_with_logits(
        logits.float(), bag.clamp(min=0).float(), reduction="none"
    )
    return (losses * known).sum() / len(logits)


def late_interaction(text: Tensor, image: Tensor, weight: Tensor) -> Tensor:
    """Scores of all captions with all pictures, token by token (Khattab and Zaharia, ColBERT, 2020;
    Yao et al., FILIP, 2022, there with equal weights):

        s_ij = sum_t w_it max_n x_it . y_jn

    text (B, T, D), image (C, N, D) unit rows; weight (B, T), 0 where there is no token. -> (B, C).
    """
    nearest = torch.einsum("btd,cnd->bctn", text, image).amax(-1)  # (B, C, T)
    return (nearest * weight[:, None, :]).sum(-1)


def matching_loss(logits: Tensor, true: Tensor, counted: Tensor) -> Tensor:
    """Binary cross entropy  -t log p - (1 - t) log(1 - p),  p = sigmoid(logit), true and false
    pairs with equal total weight.

    logits float32, true bool, counted bool, of one shape; counted: which pairs the loss is over.
    -> scalar.
    """
    losses = functional.binary_cross_entropy_with_logits(logits, true.float(), reduction="none")
    sides = [counted & true, counted & ~true]
    return torch.stack([(losses * s).sum() / s.sum().clamp(min=1) for s in sides]).mean()

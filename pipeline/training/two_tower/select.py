"""Model selection on held-out samples: hubness reduction, fusion or mean; and the report's figures,
recalls with standard errors over pictures.

The gallery is held-out pictures. `text_to_image`: a picture by its own captions, of which data with
one caption a picture has figures too. The others are of joint vectors: each picture with its first
caption, by its other captions. A fusion has to beat the best weighted mean of its own heads by more
than one standard error: queries that only one of the two answers first are counted, as in McNemar's
test (1947), picture by picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from chiasm.pipeline.metrics import (
    mean_reciprocal_of_ranks,
    ranks_of,
    reordered,
    top_k,
)
from chiasm.pipeline.training.paired import (
    TEXT_WEIGHTS,
    named_share,
    recalls_with_errors,
    wins_by_one_standard_error,
)
from chiasm.pipeline.training.two_tower.closed_form import CANDIDATES, fit_match_weights
from chiasm.pipeline.training.two_tower.stream import (
    Pair,
    augmented_of,
    ids_of,
    images_of,
    patches_of,
    words_of,
)
from chiasm.pipeline.two_tower.network import TwoTowerNetwork

POWERS = (0.0, 0.25, 0.5, 0.75)  # of hubness reduction; of equals the first
MAX_GALLERY = 2000  # pictures: the number of scores grows as their square
BLOCK = 256


@dataclass(frozen=True)
class Gallery:
    """Vectors of N pictures (N, E') and of all their C captions (C, E'), the row of the picture of
    each caption (C,), and whether it is the first of its picture (C,) bool."""

    image: Tensor
    captions: Tensor
    caption_rows: Tensor
    first: Tensor

    @property
    def text(self) -> Tensor:
        """First captions (N, E')."""
        return self.captions[self.first]

    @property
    def queries(self) -> Tensor:
        """The other captions (Q, E')."""
        return self.captions[~self.first]

    @property
    def rows(self) -> Tensor:
        """The row of the right picture of each query (Q,)."""
        return self.caption_rows[~self.first]

    def mean(self, weight: float) -> Tensor:
        """Weighted means of first captions and pictures (N, E'), unit rows; weight: of the text."""
        return functional.normalize(weight * self.text + (1 - weight) * self.image, dim=-1)


@dataclass(frozen=True)
class Selection:
    """fusion: does it ship? figures: for the report."""

    fusion: bool
    figures: dict[str, Any]


@torch.inference_mode()
def select(network: TwoTowerNetwork, pairs: Sequence[Pair]) -> Selection:
    """Compare candidate joint vectors on held-out pairs with expanded captions; leave the network
    with the best hubness power and with match weights fitted on them. Where every picture has one
    caption, the power stays as it is."""
    found = gallery(network, pairs)
    of_captions = ranks_among(found.image, found.captions, found.caption_rows)
    rows = found.rows.cpu().numpy()
    figures: dict[str, Any] = {
        "held_out": len(pairs),
        "captions": len(found.captions),
        "text_to_image": recalls_with_errors(of_captions, found.caption_rows.cpu().numpy()),
        "matching": rerank(network, pairs, found),
        "queries": len(found.queries),
    }
    ships = False
    if len(found.queries):
        mean = select_power(network, found)
        figures |= {
            "image": recalls_with_errors(ranks(found, found.image), rows),
            "text": recalls_with_errors(ranks(found, found.text), rows),
            "mean": recalls_with_errors(mean, rows),
            "hub_power": network.config.hubness_power,
        }
        if network.fusion is not None:
            weight, best = best_mean(network, found)
            fused = ranks(found, network.reduce_hubness(fused_vectors(network, pairs, found)))
            ships = wins_by_one_standard_error(fused < 1, best < 1, rows)
            figures |= {
                "text_weight": weight,
                "best_mean": recalls_with_errors(best, rows),
                "fusion": recalls_with_errors(fused, rows),
                "fusion_ships": ships,
            }
    fit_match_weights(network, pairs)
    return Selection(ships, figures)


@torch.inference_mode()
def gallery(network: TwoTowerNetwork, pairs: Sequence[Pair]) -> Gallery:
    """Held-out pairs as an index would hold them, and all their captions."""
    device = network.word_prior.device
    image = network.image_vectors(images_of(pairs).to(device))
    captions = [network.heads.texts(pair.text.float().to(device)) for pair in pairs]
    counts = torch.tensor([len(text) for text in captions], device=device)
    first = torch.zeros(int(counts.sum()), dtype=torch.bool, device=device)
    first[counts.cumsum(0) - counts] = True
    rows = torch.arange(len(pairs), device=device).repeat_interleave(counts)
    return Gallery(image, torch.cat(captions), rows, first)


def select_power(network: TwoTowerNetwork, found: Gallery) -> np.ndarray:
    """Leave the network with the hubness power whose mean has the highest MRR; -> its ranks (Q,).
    (MRR depends on every query; R@1 on few.)"""
    mean, tried = network.mean(found.text, found.image), []
    for power in POWERS:
        network.config = replace(network.config, hubness_power=power)
        of_mean = ranks(found, network.reduce_hubness(mean))
        tried.append((mean_reciprocal_of_ranks(of_mean), network.config, of_mean))
    _, network.config, of_mean = max(tried, key=lambda item: item[0])
    return of_mean


def best_mean(network: TwoTowerNetwork, found: Gallery) -> tuple[float, np.ndarray]:
    """What a fusion has to beat: of the means by TEXT_WEIGHTS, of the network's hubness power, the
    one of the highest R@1, of equals that of the smallest weight; -> the weight and ranks (Q,)."""
    tried = [
        (weight, ranks(found, network.reduce_hubness(found.mean(weight))))
        for weight in TEXT_WEIGHTS
    ]
    return max(tried, key=lambda item: int((item[1] < 1).sum()))


def fused_vectors(network: TwoTowerNetwork, pairs: Sequence[Pair], found: Gallery) -> Tensor:
    """Joint vectors (N, E') of the pictures with their first captions, by the fusion."""
    device, parts = network.word_prior.device, []
    for at in range(0, len(pairs), BLOCK):
        some = slice(at, at + BLOCK)
        words, mask = words_of(pairs[some], [0] * len(pairs[some]))
        text = network.text_modality(words.to(device), mask.to(device), found.text[some])
        image = network.image_modality(patches_of(pairs[some]).to(device), found.image[some])
        parts.append(network.fuse(text, image))
    return torch.cat(parts)


def ranks(found: Gallery, vectors: Tensor) -> np.ndarray:
    """The rank of each query's own among N vectors, (N, E') or as `reduce_hubness` has them: (Q,)
    int64, see `ranks_of`."""
    # Queries are 0 in the dimension of hubness.
    return ranks_among(vectors[:, : found.image.shape[1]], found.queries, found.rows)


def ranks_among(vectors: Tensor, queries: Tensor, own: Tensor) -> np.ndarray:
    """Vectors (N, E'), queries (Q, E') and the row of the right vector of each (Q,) -> ranks (Q,)
    int64, see `ranks_of`."""
    of_blocks = [
        ranks_of((some @ vectors.T).cpu().numpy(), rows.cpu().numpy())
        for some, rows in zip(queries.split(BLOCK), own.split(BLOCK), strict=True)
    ]
    return np.concatenate(of_blocks)


def rerank(network: TwoTowerNetwork, pairs: Sequence[Pair], found: Gallery) -> dict[str, float]:
    """R@1 of pictures by their captions before and after matching, with standard errors, rounded;
    see `reranked`."""
    before, after = reranked(network, pairs, found)
    rows = found.caption_rows.cpu().numpy()
    return named_share("r1_before", before, rows) | named_share("r1_after", after, rows)


@torch.inference_mode()
def reranked(
    network: TwoTowerNetwork, pairs: Sequence[Pair], found: Gallery
) -> tuple[np.ndarray, np.ndarray]:
    """Is a caption's own picture the first, before and after matching reranks the first CANDIDATES
    by logit plus similarity, as `search --rerank match:20` does? (C,) bool each.

    Two-fold: captions of one half of the pictures by match weights fitted on the other; leaves the
    network with the weights of one half."""
    device = network.word_prior.device
    evidence = network.image_evidence(augmented_of(pairs).to(device))
    bags = network.bag_of_words(ids_of(pairs))
    rows = found.caption_rows.cpu().numpy()
    before, after = np.zeros(len(rows), dtype=bool), np.zeros(len(rows), dtype=bool)
    for half in (0, 1):
        fit_match_weights(network, pairs[1 - half :: 2])
        for i in np.flatnonzero(rows % 2 == half):
            similarity = found.image @ found.captions[i]
            candidates = top_k(similarity.cpu().numpy()[None], CANDIDATES)[0]
            candidates = candidates[candidates >= 0]
            numbers = torch.from_numpy(candidates).to(device)
            features = network.match_features(
                found.captions[i, None], bags[i, None], evidence[numbers]
            )
            final = network.match_logits(features[0]) + similarity[numbers]
            again = reordered(candidates[None], final.cpu().numpy()[None])[0]
            before[i], after[i] = (rows[i] in order[:1] for order in (candidates, again))
    return before, after

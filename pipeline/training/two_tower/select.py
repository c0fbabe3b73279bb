"""Model selection on held-out samples: text weight, hubness reduction, fusion or mean; and the
report's figures.

The gallery is held-out pictures, each with its first caption; the queries are its other captions. A
fusion has to beat the best mean of its own heads by more than one standard error: queries that only
one of the two answers first are counted, as in McNemar's test (1947), picture by picture.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chiasm.pipeline.metrics import mean_reciprocal_of_ranks, ranks_of, recalls_of_ranks
from chiasm.pipeline.training.two_tower.closed_form import CANDIDATES, fit_match_weights
from chiasm.pipeline.training.two_tower.stream import (
    Pair,
    augmented_of,
    images_of,
    patches_of,
    words_of,
)
from chiasm.pipeline.two_tower.network import TwoTowerNetwork

WEIGHTS = (0.5, 0.45, 0.55, 0.4, 0.6, 0.65)  # of the text in the mean; of equals the first
POWERS = (0.0, 0.25, 0.5, 0.75)  # of hubness reduction, tried with each
MAX_GALLERY = 2000  # pictures: the number of scores grows as their square
BLOCK = 256


@dataclass(frozen=True)
class Gallery:
    """Vectors of N pictures and first captions (N, E'), Q queries (Q, E') and the row of the right
    picture of each (Q,)."""

    image: Tensor
    text: Tensor
    queries: Tensor
    rows: Tensor


@dataclass(frozen=True)
class Selection:
    """fusion: does it ship? figures: for the report."""

    fusion: bool
    figures: dict[str, Any]


@torch.inference_mode()
def select(network: TwoTowerNetwork, pairs: Sequence[Pair]) -> Selection:
    """Compare candidate joint vectors on held-out pairs with expanded captions; leave the network
    with the best mean and with match weights fitted on them. Without queries, mean and hubness
    power stay as they are."""
    found = gallery(network, pairs)
    if not len(found.queries):
        fit_match_weights(network, pairs)
        return Selection(False, {"held_out": len(pairs), "queries": 0})
    mean = select_mean(network, found)
    figures: dict[str, Any] = {
        "held_out": len(pairs),
        "queries": len(found.queries),
        "image": rounded_recalls(ranks(found, found.image)),
        "text": rounded_recalls(ranks(found, found.text)),
        "mean": rounded_recalls(mean),
        "text_weight": network.config.text_weight,
        "hub_power": network.config.hubness_power,
    }
    ships = False
    if network.fusion is not None:
        fused = ranks(found, network.reduce_hubness(fused_vectors(network, pairs, found)))
        figures["fusion"] = rounded_recalls(fused)
        rows = found.rows.cpu().numpy()
        ships = wins_by_one_standard_error(fused < 1, mean < 1, rows)
        figures["fusion_ships"] = ships
    figures["matching"] = rerank(network, pairs, found)
    fit_match_weights(network, pairs)
    return Selection(ships, figures)


@torch.inference_mode()
def gallery(network: TwoTowerNetwork, pairs: Sequence[Pair]) -> Gallery:
    """Held-out pairs as an index would hold them, and their other captions as queries."""
    device = network.word_prior.device
    image = network.image_vectors(images_of(pairs).to(device))
    texts = [network.heads.texts(pair.text.float().to(device)) for pair in pairs]
    counts = torch.tensor([len(text) - 1 for text in texts], device=device)
    rows = torch.arange(len(pairs), device=device).repeat_interleave(counts)
    first = torch.stack([text[0] for text in texts])
    return Gallery(image, first, torch.cat([text[1:] for text in texts]), rows)


def select_mean(network: TwoTowerNetwork, found: Gallery) -> np.ndarray:
    """Leave the network with the text weight and hubness power whose mean, the base of a fusion
    too, has the highest MRR; -> its ranks (Q,). (MRR depends on every query; R@1 on few.)"""
    tried = []
    for weight, power in itertools.product(WEIGHTS, POWERS):
        network.config = replace(network.config, text_weight=weight, hubness_power=power)
        of_mean = ranks(found, network.reduce_hubness(network.mean(found.text, found.image)))
        tried.append((mean_reciprocal_of_ranks(of_mean), network.config, of_mean))
    _, network.config, of_mean = max(tried, key=lambda item: item[0])
    return of_mean


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
    vectors = vectors[:, : found.queries.shape[1]]  # queries are 0 in the last dimension
    of_blocks = []
    for at in range(0, len(found.queries), BLOCK):
        scores = found.queries[at : at + BLOCK] @ vectors.T
        own = found.rows[at : at + BLOCK]
        of_blocks.append(ranks_of(scores.cpu().numpy(), own.cpu().numpy()))
    return np.concatenate(of_blocks)


def rounded_recalls(of_queries: np.ndarray) -> dict[str, float]:
    """Ranks (Q,) -> R@1, R@5, R@10, rounded for the report."""
    return {name: round(share, 4) for name, share in recalls_of_ranks(of_queries).items()}


def wins_by_one_standard_error(ours: np.ndarray, theirs: np.ndarray, rows: np.ndarray) -> bool:
    """Answers (Q,) bool of two, and the picture (Q,) that each query asks for: are ours right more
    often, by more than one standard error? Queries of a picture are not independent, pictures are:
    the error is that of the sum over pictures."""
    gained = ours.astype(np.float64) - theirs.astype(np.float64)
    by_picture = np.bincount(rows, weights=gained)
    return bool(by_picture.sum() > np.sqrt(np.square(by_picture).sum()))


def rerank(network: TwoTowerNetwork, pairs: Sequence[Pair], found: Gallery) -> dict[str, float]:
    """R@1 of pictures alone before and after matching reranks the first CANDIDATES, by logit plus
    similarity as `search --rerank match:20` does. Two-fold: queries of one half of the pictures by
    match weights fitted on the other; leaves the network with the weights of one half."""
    device = network.word_prior.device
    evidence = network.image_evidence(augmented_of(pairs).to(device))
    bags = network.bag_of_words([ids for pair in pairs for ids in pair.ids[1:]])
    before, after = 0, 0
    for half in (0, 1):
        fit_match_weights(network, pairs[1 - half :: 2])
        for i in (found.rows % 2 == half).nonzero()[:, 0].tolist():
            query, row, bag = found.queries[i], found.rows[i], bags[i]
            similarity, selected = (found.image @ query).topk(min(CANDIDATES, len(pairs)))
            features = network.match_features(query[None], bag[None], evidence[selected])[0]
            final = network.match_logits(features) + similarity
            before += int(selected[0] == row)
            after += int(selected[final.argmax()] == row)
    total = max(1, len(found.rows))
    return {"r1_before": round(before / total, 4), "r1_after": round(after / total, 4)}

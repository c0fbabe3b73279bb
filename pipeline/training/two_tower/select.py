"""Judging on samples held out: which mean, hubs shortened by how much, fusion or mean, and what a
person may expect.

A gallery of held-out pictures, each with its first caption; the queries are its other captions. A
fusion has to beat the best mean of its own heads by more than chance would have it: the queries
that one of the two answers first and the other does not are counted, as in McNemar's test (1947),
picture by picture.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from chiasm.pipeline.training.two_tower.closed_form import CANDIDATES, weigh_evidence
from chiasm.pipeline.training.two_tower.stream import (
    Pair,
    closely_of,
    images_of,
    patches_of,
    words_of,
)
from chiasm.pipeline.two_tower.network import TwoTowerNetwork

WEIGHTS = (0.5, 0.45, 0.55, 0.4, 0.6, 0.65)  # of the text, tried for the mean; of equals the first
POWERS = (0.0, 0.25, 0.5, 0.75)  # by which hubs are shortened, tried with each
MOST_JUDGED = 2000  # pictures of a gallery: what is asked of them grows as their square
BLOCK = 256


@dataclass(frozen=True)
class Gallery:
    """Vectors of N pictures and first captions (N, E'), Q queries (Q, E') with the row each asks
    for (Q,)."""

    image: Tensor
    text: Tensor
    queries: Tensor
    rows: Tensor


@dataclass(frozen=True)
class Judgement:
    """fusion: has it earned its weights? figures: for the report."""

    fusion: bool
    figures: dict[str, Any]


@torch.inference_mode()
def judge(network: TwoTowerNetwork, pairs: Sequence[Pair]) -> Judgement:
    """Compare what could be a joint vector, of pairs held out with their captions expanded, and
    leave the network with the mean that answers best and with evidence weighed by them; without
    other captions to ask by, the mean is kept as it is, and so are hubs."""
    shown = gallery(network, pairs)
    if not len(shown.queries):
        weigh_evidence(network, pairs)
        return Judgement(False, {"held_out": len(pairs), "queries": 0})
    mean = join_best(network, shown)
    figures: dict[str, Any] = {
        "held_out": len(pairs),
        "queries": len(shown.queries),
        "image": recall(ranks(shown, shown.image)),
        "text": recall(ranks(shown, shown.text)),
        "mean": recall(mean),
        "text_weight": network.config.text_weight,
        "hub_power": network.config.hub_power,
    }
    earned = False
    if network.fusion is not None:
        answered = ranks(shown, network.indexed(fused(network, pairs, shown)))
        figures["fusion"] = recall(answered)
        earned = wins_by_one_standard_error(answered < 1, mean < 1, shown.rows)
        figures["fusion_ships"] = earned
    figures["matching"] = rerank(network, pairs, shown)
    weigh_evidence(network, pairs)
    return Judgement(earned, figures)


@torch.inference_mode()
def gallery(network: TwoTowerNetwork, pairs: Sequence[Pair]) -> Gallery:
    """Held-out pairs as an index would hold them, and their other captions as queries."""
    device = network.usual.device
    image = network.image_vectors(images_of(pairs).to(device))
    texts = [network.heads.texts(pair.text.float().to(device)) for pair in pairs]
    counts = torch.tensor([len(text) - 1 for text in texts], device=device)
    rows = torch.arange(len(pairs), device=device).repeat_interleave(counts)
    first = torch.stack([text[0] for text in texts])
    return Gallery(image, first, torch.cat([text[1:] for text in texts]), rows)


def join_best(network: TwoTowerNetwork, shown: Gallery) -> Tensor:
    """Leave the network with the text's weight and the power of hubs by which the mean, which is
    the base of a fusion too, answers best; -> the ranks it gives (Q,)."""
    tried = []
    for weight, power in itertools.product(WEIGHTS, POWERS):
        network.config = replace(network.config, text_weight=weight, hub_power=power)
        found = ranks(shown, network.indexed(network.mean(shown.text, shown.image)))
        tried.append((_mean_reciprocal(found), network.config, found))
    _, network.config, found = max(tried, key=lambda each: each[0])
    return found


def fused(network: TwoTowerNetwork, pairs: Sequence[Pair], shown: Gallery) -> Tensor:
    """Joint vectors (N, E') of the pictures with their first captions, by the fusion."""
    device, parts = network.usual.device, []
    for at in range(0, len(pairs), BLOCK):
        some = slice(at, at + BLOCK)
        words, mask = words_of(pairs[some], [0] * len(pairs[some]))
        text = network.text_modality(words.to(device), mask.to(device), shown.text[some])
        image = network.image_modality(patches_of(pairs[some]).to(device), shown.image[some])
        parts.append(network.fused(text, image))
    return torch.cat(parts)


def ranks(shown: Gallery, indexed: Tensor) -> Tensor:
    """How many of N vectors, (N, E') or as `indexed` has them, each query finds before its own:
    (Q,) int64; ties count against it."""
    indexed = indexed[:, : shown.queries.shape[1]]  # of the last dimension queries have nothing
    found = []
    for at in range(0, len(shown.queries), BLOCK):
        scores = shown.queries[at : at + BLOCK] @ indexed.T
        own = scores.gather(1, shown.rows[at : at + BLOCK, None])
        found.append((scores >= own).sum(1) - 1)
    return torch.cat(found)


def recall(found: Tensor) -> dict[str, float]:
    """Ranks (Q,) -> R@1, R@5, R@10."""
    return {f"r{k}": round(float((found < k).float().mean()), 4) for k in (1, 5, 10)}


def _mean_reciprocal(found: Tensor) -> float:
    """The mean of 1 / (1 + rank): it hears of every query, where R@1 turns on the few between."""
    return float((1 / (1 + found)).mean())


def wins_by_one_standard_error(ours: Tensor, theirs: Tensor, rows: Tensor) -> bool:
    """Answers (Q,) bool of two, and the picture (Q,) that each query asks for: are ours right more
    often, by more than one standard error? Queries of a picture are not independent, pictures are:
    the error is that of the sum over pictures."""
    gained = (ours.float() - theirs.float()).cpu()
    by_picture = torch.zeros(int(rows.max()) + 1).index_add(0, rows.cpu(), gained)
    return bool(by_picture.sum() > by_picture.square().sum().sqrt())


def rerank(network: TwoTowerNetwork, pairs: Sequence[Pair], shown: Gallery) -> dict[str, float]:
    """R@1 of pictures alone before and after matching looks at the first CANDIDATES again, by logit
    plus likeness as `search --rerank match:20` has it. Each half of the pictures is asked for by
    what the other half says evidence weighs; leaves the network with weights of a half."""
    device = network.usual.device
    seen = network.seen(closely_of(pairs).to(device))
    held = network.held([ids for pair in pairs for ids in pair.ids[1:]])
    before, after = 0, 0
    for half in (0, 1):
        weigh_evidence(network, pairs[1 - half :: 2])
        for i in (shown.rows % 2 == half).nonzero()[:, 0].tolist():
            query, row, words = shown.queries[i], shown.rows[i], held[i]
            likeness, chosen = (shown.image @ query).topk(min(CANDIDATES, len(pairs)))
            traits = network.traits(query[None], words[None], seen[chosen])[0]
            final = network.logits(traits) + likeness
            before += int(chosen[0] == row)
            after += int(chosen[final.argmax()] == row)
    total = max(1, len(shown.rows))
    return {"r1_before": round(before / total, 4), "r1_after": round(after / total, 4)}

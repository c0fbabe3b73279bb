"""What is solved instead of descended to: landmarks, kernel ridge, evidence of words, matching.

One pass over the features gathers statistics and landmarks, a second the normal equations of

    A = (K' K + l G)^-1 K' (Y - m)          K (N, M) pictures to landmarks, G (M, M) among these

with Y the mean caption vectors of the pictures for `vectors`, the shares of their captions that
hold each word for `shares`, and m their means. Memory is M (M + E + V), however many pictures.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from pipeline.two_tower.features import Pair, images_of, stream
from pipeline.two_tower.network import EVIDENCE, TwoTowerNetwork

BLOCK = 512  # pictures at a time
RIDGE = 1.0  # l
FLOOR = 0.05  # added to the spread of a feature: those that hardly vary say nothing
RARE = 3  # a word that fewer pictures hold is no evidence
MOST_WORDS = 4096


@dataclass(frozen=True)
class Statistics:
    """Of a stream: pairs N; `learnable`, those not held out; `several`, those with more than one
    caption; root: was no feature negative; words: tokens that captions of RARE pictures or more
    hold, the most frequent first.
    """

    pairs: int
    learnable: int
    several: int
    root: bool
    words: list[int]


def survey(paths: Sequence[Path]) -> Statistics:
    """A first look at the features, those held out too: what the config has to know."""
    pairs, learnable, several, root, holding = 0, 0, 0, True, Counter[int]()
    for pair in stream(paths):
        pairs += 1
        learnable += not pair.held_out
        several += len(pair.text) > 1
        root = root and bool((pair.image >= 0).all()) and bool((pair.patches >= 0).all())
        holding.update({word for ids in pair.ids for word in ids})
    frequent = [word for word, count in holding.most_common(MOST_WORDS) if count >= RARE]
    return Statistics(pairs, learnable, several, root, frequent)


@torch.inference_mode()
def solve(
    network: TwoTowerNetwork, paths: Sequence[Path], words: Sequence[int], *, every_sample: bool
) -> None:
    """Fill in the network's kernel and its words, for the text head as it is."""
    device = network.usual.device
    _place_landmarks(network, paths, every_sample)
    with torch.no_grad():
        network.word_ids.copy_(torch.tensor(list(words), dtype=torch.int64))
    size, targets = network.config.landmarks, network.config.dim + len(words)
    gram = torch.zeros(size, size, device=device)
    cross = torch.zeros(size, targets, device=device)
    total, likeness, count = torch.zeros(targets, device=device), torch.zeros_like(gram[0]), 0
    for block in blocks(_chosen(paths, every_sample)):
        seen = network.kernel(network.rooted(images_of(block).to(device)))  # (B, M)
        target = torch.cat([_mean_vectors(network, block), _shares(network, block)], dim=1)
        gram += seen.T @ seen
        cross += seen.T @ target
        total, likeness, count = total + target.sum(0), likeness + seen.sum(0), count + len(block)
    mean = total / count
    among = network.kernel.landmarks @ network.kernel.landmarks.T
    ridge = RIDGE * torch.exp(network.kernel.sharpness * (among - 1))
    # In float64: landmarks that are much alike make the equations nearly singular.
    left = (gram + ridge).double() + 1e-4 * torch.eye(size, device=device, dtype=torch.float64)
    right = (cross - likeness[:, None] * mean).double()
    solved = torch.linalg.solve(left, right).float()
    network.kernel.vectors.copy_(solved[:, : network.config.dim])
    network.kernel.shares.copy_(solved[:, network.config.dim :])
    network.usual.copy_(mean[network.config.dim :])


def _place_landmarks(network: TwoTowerNetwork, paths: Sequence[Path], every_sample: bool) -> None:
    """Mean and spread of every feature, and M pictures drawn evenly from the stream."""
    chance, kept, count = random.Random(0), [], 0
    total = squares = torch.zeros(network.config.image_width, dtype=torch.float64)
    for pair in _chosen(paths, every_sample):
        x = network.rooted(pair.image.float()).double()
        total, squares, count = total + x, squares + x * x, count + 1
        # Reservoir sampling (Vitter, Algorithm R, 1985).
        if len(kept) < network.config.landmarks:
            kept.append(pair.image)
        elif (place := chance.randrange(count)) < len(kept):
            kept[place] = pair.image
    kernel, mean = network.kernel, total / count
    kernel.shift.copy_(mean)
    kernel.spread.copy_((squares / count - mean * mean).clamp(min=0).sqrt() + FLOOR)
    x = network.rooted(torch.stack(kept).float().to(kernel.shift.device))
    kernel.landmarks.copy_(kernel.standard(x))


def _mean_vectors(network: TwoTowerNetwork, block: list[Pair]) -> Tensor:
    """(B, E): the mean of the vectors of each picture's captions."""
    device = network.usual.device
    counts = torch.tensor([len(pair.text) for pair in block], device=device)
    vectors = network.text_vectors(torch.cat([pair.text for pair in block]).float().to(device))
    rows = torch.arange(len(block), device=device).repeat_interleave(counts)
    sums = torch.zeros(len(block), vectors.shape[1], device=device).index_add_(0, rows, vectors)
    return sums / counts[:, None]


def _shares(network: TwoTowerNetwork, block: list[Pair]) -> Tensor:
    """(B, V): the share of each picture's captions that hold each word."""
    counts = [len(pair.ids) for pair in block]
    held = network.held([ids for pair in block for ids in pair.ids])
    return torch.stack([each.mean(0) for each in held.split(counts)])


@torch.inference_mode()
def weigh_evidence(network: TwoTowerNetwork, pairs: Sequence[Pair], candidates: int = 20) -> None:
    """Fit what matching weighs, on samples that nothing was learned from.

    The weights a, c, d so that a picture stands first among the `candidates` most alike to its
    caption, where it is one of them: asked of pairs one by one instead, likeness would seem to
    speak against a match, for the wrong ones were chosen by it. Then all of them are stretched and
    b is found so that the logit is the log odds of a caption's own picture against any other.
    """
    device = network.usual.device
    pooled = images_of(pairs).to(device)
    images, lifts = network.image_vectors(pooled), network.log_lifts(pooled)
    count, size = len(pairs), min(candidates, len(pairs))
    chance = torch.Generator().manual_seed(0)
    lists, own, other = [], [], []
    for row, pair in enumerate(pairs):
        likeness = network.text_vectors(pair.text.float().to(device)) @ images.T  # (C, N)
        for liked, held in zip(likeness, network.held(pair.ids), strict=True):
            traits = network.traits(liked, lifts, held)  # (N, EVIDENCE)
            likely = liked.topk(size).indices
            if (likely == row).any():
                lists.append(torch.cat([traits[row : row + 1], traits[likely[likely != row]]]))
            wrong = (row + 1 + int(torch.randint(count - 1, (1,), generator=chance))) % count
            own.append(traits[row])
            other.append(traits[wrong])
    if not lists:
        return
    weights = torch.zeros(EVIDENCE, dtype=torch.float64, device=device)
    weights[1:] = first_of_list(torch.stack(lists)[..., 1:].double())
    scores = torch.stack(own + other).double() @ weights
    truths = torch.arange(len(scores), device=device) < len(own)
    bias, stretch = logistic(scores, truths)
    weights *= stretch
    weights[0] = bias
    network.evidence.copy_(weights.float())


def first_of_list(x: Tensor, ridge: float = 1e-6, rounds: int = 50) -> Tensor:
    """Weights, none below zero, by which the first of each list is likeliest chosen: conditional
    logit (McFadden, 1974) by Newton's method. Evidence for a match cannot tell against it.

    x (Q, K, F) float64, what is right at place 0 -> (F,) float64.
    """
    spread = (x - x.mean(1, keepdim=True)).square().mean((0, 1)).sqrt().clamp(min=1e-9)
    x = x / spread
    eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    weights, used = torch.zeros_like(spread), torch.ones_like(spread, dtype=torch.bool)
    for _ in range(rounds):
        p = (x @ weights).softmax(dim=1)[..., None]  # (Q, K, 1)
        expected = (p * x).sum(1)  # (Q, F)
        slope = (expected - x[:, 0]).mean(0) + ridge * weights
        away = x - expected[:, None]
        curve = torch.einsum("qkf,qkg->fg", p * away, away) / len(x) + ridge * eye
        change = torch.zeros_like(weights)
        change[used] = torch.linalg.solve(curve[used][:, used], slope[used])
        weights = weights - change
        negative = weights < 0
        used, weights = used & ~negative, weights.clamp(min=0)
        if change.abs().max() < 1e-10 and not negative.any():
            break
    return weights / spread


def logistic(scores: Tensor, true: Tensor, rounds: int = 50) -> tuple[float, float]:
    """(b, s) of the log odds b + s x, right and wrong weighing the same (Platt, 1999): scores (N,)
    float64, true (N,) bool. What can be told apart without an error gets no endless s: a thousandth
    of s^2 is added to the mean loss.
    """
    counted = torch.where(true, 0.5 / true.sum().clamp(min=1), 0.5 / (~true).sum().clamp(min=1))
    spread = scores.std().clamp(min=1e-9)
    x = torch.stack([torch.ones_like(scores), scores / spread], dim=1)
    ridge = torch.diag(torch.tensor([1e-9, 2e-3], dtype=x.dtype, device=x.device))
    weights = torch.zeros(2, dtype=x.dtype, device=x.device)
    for _ in range(rounds):
        p = torch.sigmoid(x @ weights)
        slope = x.T @ (counted * (p - true.double())) + ridge @ weights
        curve = (x * (counted * p * (1 - p))[:, None]).T @ x + ridge
        change = torch.linalg.solve(curve, slope)
        weights = weights - change
        if change.abs().max() < 1e-10:
            break
    return float(weights[0]), float(weights[1] / spread)


def blocks(pairs: Iterator[Pair]) -> Iterator[list[Pair]]:
    """The stream, BLOCK pairs at a time."""
    while block := list(islice(pairs, BLOCK)):
        yield block


def _chosen(paths: Sequence[Path], every_sample: bool) -> Iterator[Pair]:
    return (pair for pair in stream(paths) if every_sample or not pair.held_out)

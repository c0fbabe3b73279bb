"""What is solved instead of descended to, once the heads have learned: kernel ridge for vectors and
for words, and what matching weighs.

One pass over the features gathers the normal equations of kernel ridge (`ridge.py`) from pictures'
likenesses to landmarks, with the landmarks' likenesses among themselves for penalty. Its targets:
the mean caption vectors of the pictures for `vectors`, the shares of their captions that hold each
word for `shares`, each less its mean. Memory is M (M + E' + V), however many pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from chiasm.pipeline.training.two_tower.prepare import Statistics, drawn
from chiasm.pipeline.training.two_tower.ridge import Ridge
from chiasm.pipeline.training.two_tower.stream import (
    Pair,
    blocks,
    closely_of,
    ids_of,
    images_of,
    learnable,
    meaned,
    stream,
    texts_of,
)
from chiasm.pipeline.two_tower.network import EVIDENCE, TwoTowerNetwork

RIDGE = 1.0  # of the penalty
CANDIDATES = 20  # as many as are looked at again, by default


@torch.inference_mode()
def solve(
    network: TwoTowerNetwork,
    paths: Sequence[Path],
    told: Statistics,
    expanded: Path,
    *,
    every_sample: bool,
) -> None:
    """Fill in what the network's kernel foretells, for the text head as it is, and captions by
    which hubs are known. Landmarks are there (`prepare`)."""
    device, config, kernel = network.usual.device, network.config, network.kernel
    ridge = Ridge(config.landmarks, config.space + config.words, parts=1, device=device)
    wanted = set(drawn(told.counts(every_sample)[0], config.asked))
    asked, row = [], 0
    for block in blocks(learnable(stream(paths, expanded=expanded), every_sample)):
        texts = network.heads.texts(texts_of(block).to(device))
        for of_picture in texts.split([len(pair.text) for pair in block]):
            if row in wanted:
                asked.append(of_picture[row % len(of_picture)].clone())  # not with all its block
            row += 1
        vectors = meaned(texts, block)
        shares = meaned(network.held(ids_of(block)), block)
        likeness = kernel(network.rooted(images_of(block).to(device)))  # (B, M)
        ridge.add(likeness, torch.cat([vectors, shares], dim=1))
    solved = ridge.solved(RIDGE * kernel.likeness(kernel.landmarks))
    kernel.vectors.copy_(solved[:, : config.space])
    kernel.shares.copy_(solved[:, config.space :])
    network.hubs.asked.copy_(torch.stack(asked))


@torch.inference_mode()
def weigh_evidence(network: TwoTowerNetwork, pairs: Sequence[Pair]) -> None:
    """Fit what matching weighs, on samples that nothing was learned from: nothing at all where no
    picture is among those most alike to a caption of its.

    All but the bias so that a picture stands first among the CANDIDATES most alike to its caption,
    where it is one of them: asked of pairs one by one instead, likeness would seem to speak against
    a match, for the wrong ones were chosen by it. Then all of them are stretched and the bias is
    found so that the logit is the log odds of a caption's own picture against any other.
    """
    network.evidence.zero_()
    if len(pairs) < 2:
        return
    device = network.usual.device
    images = network.image_vectors(images_of(pairs).to(device))
    seen = network.seen(closely_of(pairs).to(device))
    count, size = len(pairs), min(CANDIDATES, len(pairs))
    chance = torch.Generator().manual_seed(0)
    lists, own, other = [], [], []
    for row, pair in enumerate(pairs):
        text, held = network.heads.texts(pair.text.float().to(device)), network.held(pair.ids)
        liked = (text @ images.T).topk(size).indices  # (C, size)
        wrong = (row + 1 + torch.randint(count - 1, (len(text),), generator=chance)) % count
        asked = torch.cat([torch.tensor([row]), wrong]).to(device)
        traits = network.traits(text, held, seen[torch.cat([asked, liked.flatten()])])
        first = len(asked)
        for c, likely in enumerate(liked):
            mine = traits[c, first + c * size : first + (c + 1) * size]
            own.append(traits[c, 0])
            other.append(traits[c, 1 + c])
            if (likely == row).any():
                lists.append(torch.cat([traits[c, :1], mine[likely != row]]))
    if not lists:
        return
    weights = torch.zeros(EVIDENCE, dtype=torch.float64, device=device)
    weights[1:] = first_of_list(torch.stack(lists)[..., 1:].double())
    scores = torch.stack(own + other).double() @ weights
    truths = torch.arange(len(scores), device=device) < len(own)
    bias, stretch = logistic(scores, truths)
    weights *= max(0.0, stretch)  # evidence that misleads where it was not fitted is none
    weights[0] = bias
    network.evidence.copy_(weights.float())


def first_of_list(x: Tensor, ridge: float = 1e-6) -> Tensor:
    """Weights, none below zero, by which the first of each list is likeliest chosen: conditional
    logit (McFadden, 1974), by L-BFGS-B. Evidence for a match cannot tell against it.

    x (Q, K, F) float64, what is right at place 0 -> (F,) float64.
    """
    away = x - x.mean(1, keepdim=True)  # what is the same for all of a list tells nothing
    spread = away.square().mean((0, 1)).sqrt().clamp(min=1e-9)
    z = (away / spread).cpu()

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        w = torch.from_numpy(weights)
        logs = (z @ w).log_softmax(dim=1)  # (Q, K)
        slope = (logs.exp()[..., None] * z).sum(1).sub(z[:, 0]).mean(0) + ridge * w
        return float(ridge / 2 * w @ w - logs[:, 0].mean()), slope.numpy()

    size = z.shape[-1]
    found = minimize(
        loss, np.zeros(size), jac=True, method="L-BFGS-B", bounds=[(0, None)] * size,
        options={"ftol": 0.0, "gtol": 1e-7, "maxiter": 1000},
    )  # fmt: skip
    return torch.from_numpy(found.x).to(x.device) / spread


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

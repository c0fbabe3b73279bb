"""Solved after the heads are trained: kernel ridge for vectors and words, and match weights.

One pass over the features gathers the normal equations of kernel ridge (`ridge.py`), from pictures'
similarities to landmarks, with the landmarks' similarities among themselves as penalty. Targets are
the mean caption vector of a picture and the shares of its captions that contain each word, less the
means of these. Memory is M (M + E' + V), however many pictures there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from chiasm.pipeline.metrics import top_k
from chiasm.pipeline.training.logit_fits import fit_conditional_logit, platt_scale
from chiasm.pipeline.training.two_tower.prepare import Statistics, evenly_drawn
from chiasm.pipeline.training.two_tower.ridge import Ridge
from chiasm.pipeline.training.two_tower.stream import (
    Pair,
    augmented_of,
    blocks,
    ids_of,
    images_of,
    learnable,
    mean_by_picture,
    stream,
    texts_of,
)
from chiasm.pipeline.two_tower.network import TwoTowerNetwork

RIDGE = 1.0  # of the penalty
CANDIDATES = 20  # as many as `search --rerank match` scores by default


@torch.inference_mode()
def solve(
    network: TwoTowerNetwork,
    paths: Sequence[Path],
    statistics: Statistics,
    expanded: Path,
    *,
    every_sample: bool,
) -> None:
    """Set the network's kernel ridge, for the text head as it is, and the query bank of hubness
    reduction. Landmarks must be there (`prepare`)."""
    device, config, kernel = network.word_prior.device, network.config, network.kernel
    ridge = Ridge(config.landmarks, config.space + config.words, folds=1, device=device)
    wanted = set(evenly_drawn(statistics.counts(every_sample)[0], config.query_bank))
    bank, row = [], 0
    for block in blocks(learnable(stream(paths, expanded=expanded), every_sample)):
        texts = network.heads.texts(texts_of(block).to(device))
        for of_picture in texts.split([len(pair.text) for pair in block]):
            if row in wanted:
                bank.append(of_picture[row % len(of_picture)].clone())  # not a view of its block
            row += 1
        similarity = kernel(network.sqrt_features(images_of(block).to(device)))  # (B, M)
        shares = mean_by_picture(network.bag_of_words(ids_of(block)), block)
        ridge.add(similarity, torch.cat([mean_by_picture(texts, block), shares], dim=1))
    solved = ridge.solve(RIDGE * kernel.similarity(kernel.landmarks))
    kernel.vectors.copy_(solved[:, : config.space])
    kernel.word_weights.copy_(solved[:, config.space :])
    network.hubness.query_bank.copy_(torch.stack(bank))


@dataclass(frozen=True)
class _MatchSamples:
    """Match features: of own and other pairs (N, F) each, and of the lists (Q, K, F) in which a
    caption's own picture, at index 0, is among the CANDIDATES most similar to it."""

    own: Tensor
    other: Tensor
    lists: Tensor


@torch.inference_mode()
def fit_match_weights(network: TwoTowerNetwork, pairs: Sequence[Pair]) -> None:
    """Fit the weights of matching on held-out samples; all 0 where no picture is among those most
    similar to one of its captions.

    All but the bias by conditional logit: a picture shall rank first among the CANDIDATES most
    similar to its caption. (Logistic regression on single pairs would give similarity a negative
    weight, for wrong candidates were selected by it.) Then Platt scaling makes the logit the log
    odds of a caption's own picture against any other.
    """
    network.match_weights.zero_()
    samples = _match_samples(network, pairs) if len(pairs) > 1 else None
    if samples is None:
        return
    weights = torch.zeros(len(network.match_weights), dtype=torch.float64)
    lists = samples.lists[..., 1:].double().cpu().numpy()
    weights[1:] = torch.from_numpy(fit_conditional_logit(lists))
    scores = torch.cat([samples.own, samples.other]).double().cpu() @ weights
    bias, scale = platt_scale(
        scores.numpy(), (torch.arange(len(scores)) < len(samples.own)).numpy()
    )
    weights *= max(0.0, scale)  # features that mislead on single pairs get no weight
    weights[0] = bias
    network.match_weights.copy_(weights.float())


def _match_samples(network: TwoTowerNetwork, pairs: Sequence[Pair]) -> _MatchSamples | None:
    """Of every caption its own picture, another one at random, and its candidates; None where no
    caption has its own picture among its candidates."""
    device = network.word_prior.device
    images = network.image_vectors(images_of(pairs).to(device))
    evidence = network.image_evidence(augmented_of(pairs).to(device))
    count, size = len(pairs), min(CANDIDATES, len(pairs))
    generator = torch.Generator().manual_seed(0)
    lists, own, other = [], [], []
    for row, pair in enumerate(pairs):
        text = network.heads.texts(pair.text.float().to(device))
        bag = network.bag_of_words(pair.ids)
        similar = top_k((text @ images.T).cpu().numpy(), size)
        candidates = torch.from_numpy(similar).to(device)  # (C, size)
        wrong = (row + 1 + torch.randint(count - 1, (len(text),), generator=generator)) % count
        scored = torch.cat([torch.tensor([row]), wrong]).to(device)
        of_rows = evidence[torch.cat([scored, candidates.flatten()])]
        features = network.match_features(text, bag, of_rows)
        first = len(scored)
        for c, found in enumerate(candidates):
            of_caption = features[c, first + c * size : first + (c + 1) * size]
            own.append(features[c, 0])
            other.append(features[c, 1 + c])
            if (found == row).any():
                lists.append(torch.cat([features[c, :1], of_caption[found != row]]))
    if not lists:
        return None
    return _MatchSamples(torch.stack(own), torch.stack(other), torch.stack(lists))

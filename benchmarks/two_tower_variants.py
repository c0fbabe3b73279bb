"""What `two_tower_pieces.py` measures of a fold, and changes that need no training of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from chiasm.pipeline.metrics import mean_reciprocal_of_ranks
from chiasm.pipeline.training.paired import TEXT_WEIGHTS
from chiasm.pipeline.training.two_tower import select
from chiasm.pipeline.training.two_tower.stream import Pair
from chiasm.pipeline.two_tower.earlier import FormatSevenNetwork, FormatSixNetwork
from chiasm.pipeline.two_tower.network import MATCH_FEATURES, TwoTowerConfig, TwoTowerNetwork

CPU = torch.device("cpu")
JOINT, MATCHED = ("joint", "picture"), ("matched",)


@dataclass(frozen=True)
class Fold:
    """A fold after training: the network and the pictures held out."""

    network: TwoTowerNetwork
    pairs: list[Pair]


# Metrics: of each picture held out how many of its queries find it first, as a string of digits.


def of_pictures(right: np.ndarray, rows: np.ndarray, count: int) -> str:
    """right (Q,) bool and the picture of each query -> a digit for each of `count` pictures."""
    return "".join(map(str, np.bincount(rows, weights=right, minlength=count).astype(int)))


@torch.inference_mode()
def joint(fold: Fold) -> str:
    """Selected on one half of the pictures, measured on the other, among all of them."""
    found = select.gallery(fold.network, fold.pairs)
    rows, right = found.rows.numpy(), np.zeros(len(found.rows), dtype=bool)
    for half in (0, 1):
        select.select_power(fold.network, queries_of_half(found, 1 - half))
        mean = fold.network.mean(found.text, found.image)
        ranks = select.ranks(found, fold.network.reduce_hubness(mean))
        right = np.where(rows % 2 == half, ranks < 1, right)
    return of_pictures(right, rows, len(fold.pairs))


def queries_of_half(found: select.Gallery, half: int) -> select.Gallery:
    """All pictures of a gallery, and queries for those of even (0) or odd (1) number alone."""
    kept = found.first | (found.caption_rows % 2 == half)
    return select.Gallery(
        found.image, found.captions[kept], found.caption_rows[kept], found.first[kept]
    )


@torch.inference_mode()
def picture(fold: Fold) -> str:
    """Pictures alone by all captions."""
    found = select.gallery(fold.network, fold.pairs)
    ranks = select.ranks_among(found.image, found.captions, found.caption_rows)
    return of_pictures(ranks < 1, found.caption_rows.numpy(), len(fold.pairs))


@torch.inference_mode()
def matched(fold: Fold) -> str:
    """The same with the first CANDIDATES matched again."""
    found = select.gallery(fold.network, fold.pairs)
    _, after = select.reranked(fold.network, fold.pairs, found)
    return of_pictures(after, found.caption_rows.numpy(), len(fold.pairs))


METRICS: dict[str, Callable[[Fold], str]] = {"joint": joint, "picture": picture, "matched": matched}


# Variants without a training of their own: context managers that give the changed fold.


@contextmanager
def no_change(fold: Fold) -> Iterator[Fold]:
    yield fold


@contextmanager
def patched(target: Any, **values: Any) -> Iterator[None]:
    """Attributes replaced for a while."""
    with mock.patch.multiple(target, **values) if values else mock.patch.dict({}):
        yield


@contextmanager
def selected_from(fold: Fold, **values: tuple[float, ...]) -> Iterator[Fold]:
    with patched(select, **values):
        yield fold


@contextmanager
def without_kernel(fold: Fold) -> Iterator[Fold]:
    kept = fold.network.kernel.vectors.clone()
    fold.network.kernel.vectors.zero_()
    yield fold
    fold.network.kernel.vectors.copy_(kept)


@contextmanager
def without_image_head(fold: Fold) -> Iterator[Fold]:
    space = fold.network.config.space
    with patched(fold.network.heads, images=lambda x: torch.zeros(len(x), space)):
        yield fold


@contextmanager
def weighted_mean(fold: Fold) -> Iterator[Fold]:
    """The mean's weight selected, too, on the same half, after the hubness power."""

    def select_both(network: TwoTowerNetwork, found: select.Gallery) -> np.ndarray:
        network.config = replace(network.config, text_weight=0.5)
        select_power(network, found)
        tried = {w: network.reduce_hubness(found.mean(w)) for w in TEXT_WEIGHTS}
        ranks = {weight: select.ranks(found, mean) for weight, mean in tried.items()}
        best = max(ranks, key=lambda weight: mean_reciprocal_of_ranks(ranks[weight]))
        network.config = replace(network.config, text_weight=best)
        return ranks[best]

    select_power = select.select_power
    with patched(select, select_power=select_both):
        yield fold
    fold.network.config = replace(fold.network.config, text_weight=0.5)


@contextmanager
def without_augmentation(fold: Fold) -> Iterator[Fold]:
    yield replace(fold, pairs=[replace(pair, augmented=pair.image) for pair in fold.pairs])


@contextmanager
def without_absent_words(fold: Fold) -> Iterator[Fold]:
    def match_features(text: Tensor, bag: Tensor, image: Any) -> Tensor:
        features = TwoTowerNetwork.match_features(fold.network, text, bag, image)
        return features * features.new_tensor([1.0] * (MATCH_FEATURES - 1) + [0.0])

    with patched(fold.network, match_features=match_features):
        yield fold


class OneWeight(TwoTowerNetwork):
    """Words of all bands with one weight."""

    match_features = FormatSevenNetwork.match_features

    def __init__(self, config: TwoTowerConfig) -> None:
        super().__init__(config)
        self.match_weights = torch.nn.Parameter(torch.zeros(4), requires_grad=False)


class ByNetworkAlone(FormatSixNetwork):
    """Words by the network alone, with a weight a band."""

    word_shares = FormatSevenNetwork.word_shares


@contextmanager
def as_network(fold: Fold, kind: type[TwoTowerNetwork]) -> Iterator[Fold]:
    """The fold with another network of the same weights; match weights are fitted anew."""
    network = kind(fold.network.config)
    weights = fold.network.state_dict()
    del weights["match_weights"]
    network.load_state_dict(weights, strict=False)
    yield replace(fold, network=network.eval())


Change = Callable[[Fold], Any]
UNTRAINED: dict[str, tuple[Change, tuple[str, ...]]] = {
    "base": (no_change, (*JOINT, *MATCHED)),
    "no kernel ridge": (without_kernel, JOINT),
    "no image head": (without_image_head, JOINT),
    "no hubness reduction": (partial(selected_from, POWERS=(0.0,)), ("joint",)),
    "best weighted mean": (weighted_mean, ("joint",)),
    "no test-time augmentation": (without_augmentation, MATCHED),
    "no absent words": (without_absent_words, MATCHED),
    "words by the network alone": (partial(as_network, kind=ByNetworkAlone), MATCHED),
    "one band": (partial(as_network, kind=OneWeight), MATCHED),
    "words by the network alone, one band": (
        partial(as_network, kind=FormatSevenNetwork),
        MATCHED,
    ),
}

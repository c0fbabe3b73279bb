"""What is known before heads learn: statistics, landmarks, and captions expanded.

Three passes over the features: means, landmarks and how usual words are; the normal equations of
expansion, for each part of the samples apart; and the captions, expanded and written.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn import functional

from pipeline.model.checkpoint import write_whole
from pipeline.two_tower.expansion import SHARPNESS, joined
from pipeline.two_tower.features import (
    PARTS,
    Pair,
    blocks,
    ids_of,
    learnable,
    meaned,
    save_expanded,
    stream,
    texts_of,
)
from pipeline.two_tower.network import TwoTowerConfig, TwoTowerNetwork

FLOOR = 0.05  # added to the spread of a feature: those that hardly vary say nothing
RARE = 3  # a word that fewer pictures hold is no evidence
MOST_WORDS = 4096
KERNEL_RIDGE, WORD_RIDGE = 1.0, 10.0
DONE = "prepared.safetensors"


@dataclass(frozen=True)
class Statistics:
    """Of a stream: pairs and captions, of these those that are learned from while choices are made;
    `several`, pairs with more than one caption; root: was no feature negative; words: tokens that
    captions of RARE pictures or more hold, the most frequent first.
    """

    pairs: int
    learnable: int
    captions: int
    learnable_captions: int
    several: int
    root: bool
    words: list[int]

    def counts(self, every_sample: bool) -> tuple[int, int]:
        """Pairs and captions that are learned from."""
        if every_sample:
            return self.pairs, self.captions
        return self.learnable, self.learnable_captions


def survey(paths: Sequence[Path]) -> Statistics:
    """A first look at the features, those held out too: what the config has to know."""
    pairs, captions, several, root, holding = [0, 0], [0, 0], 0, True, Counter[int]()
    for pair in stream(paths):
        pairs[pair.held_out] += 1
        captions[pair.held_out] += len(pair.text)
        several += len(pair.text) > 1
        root = root and bool((pair.image >= 0).all()) and bool((pair.patches >= 0).all())
        holding.update({word for ids in pair.ids for word in ids})
    frequent = [word for word, count in holding.most_common(MOST_WORDS) if count >= RARE]
    return Statistics(sum(pairs), pairs[0], sum(captions), captions[0], several, root, frequent)


def drawn(count: int, size: int) -> list[int]:
    """`size` of `count` places at most, evenly drawn, in order; the same each time."""
    return sorted(random.Random(0).sample(range(count), min(count, size)))


@torch.no_grad()
def prepare(
    config: TwoTowerConfig,
    paths: Sequence[Path],
    told: Statistics,
    folder: Path,
    *,
    every_sample: bool,
    device: torch.device,
) -> TwoTowerNetwork:
    """A network in which what does not learn is in its place, and `folder` with every caption
    expanded. What is there already from a run that was killed is taken as it is."""
    network = TwoTowerNetwork(config).to(device)
    if (folder / DONE).exists():
        network.load_state_dict(load_file(folder / DONE), strict=False)
        return network
    network.word_ids.copy_(torch.tensor(told.words, dtype=torch.int64))
    _look(network, paths, told, every_sample)
    weights = _solve(network, paths, every_sample) if config.text_landmarks else None
    for path in paths:
        texts = [text for block in blocks(stream([path]))
                 for text in _expanded(network, block, weights, every_sample)]  # fmt: skip
        save_expanded(folder, path, texts)
    kept = {name: each.data for name, each in network.named_parameters() if not each.requires_grad}
    write_whole(folder / DONE, save({k: v.cpu().contiguous() for k, v in kept.items()}))
    return network


@torch.no_grad()
def expand(network: TwoTowerNetwork, pairs: Sequence[Pair]) -> list[Pair]:
    """Pairs as the tower gave them, none of which was learned from -> with captions expanded."""
    device, found = network.usual.device, []
    for pair in pairs:
        text = network.expansion(pair.text.float().to(device), network.held(pair.ids))
        found.append(replace(pair, text=text.cpu()))
    return found


def _look(
    network: TwoTowerNetwork, paths: Sequence[Path], told: Statistics, every_sample: bool
) -> None:
    """Mean and spread of every feature, how usual words are, and landmarks."""
    config, kernel, expansion = network.config, network.kernel, network.expansion
    pairs, captions = told.counts(every_sample)
    wanted = set(drawn(pairs, config.landmarks))
    wanted_texts = set(drawn(captions, config.text_landmarks))
    images, texts, row, text_row = [], [], 0, 0
    total = squares = torch.zeros(config.image_width, dtype=torch.float64)
    usual = torch.zeros_like(network.usual)
    for block in blocks(learnable(stream(paths), every_sample)):
        usual += meaned(network.held(ids_of(block)), block).sum(0)
        for pair in block:
            x = network.rooted(pair.image.float())
            total, squares = total + x.double(), squares + x.double().square()
            if row in wanted:
                images.append(x)
            own = functional.normalize(pair.text.float(), dim=-1)
            texts += [own[i] for i in range(len(own)) if text_row + i in wanted_texts]
            row, text_row = row + 1, text_row + len(own)
    mean = total / row
    kernel.shift.copy_(mean)
    kernel.spread.copy_((squares / row - mean * mean).clamp(min=0).sqrt() + FLOOR)
    kernel.landmarks.copy_(kernel.standard(torch.stack(images).to(kernel.shift.device)))
    network.usual.copy_(usual / row)
    if texts:
        expansion.landmarks.copy_(torch.stack(texts))
        # A word that no caption to learn from holds says nothing.
        seen = network.usual.clamp(min=1e-9)
        expansion.rarity.copy_(torch.where(network.usual > 0, -torch.log(seen), 0.0))


class _Ridge:
    """F features -> D targets by ridge, once for each part without it, and once with all."""

    def __init__(self, width: int, targets: int, device: torch.device) -> None:
        self.gram = torch.zeros(PARTS, width, width, device=device)
        self.cross = torch.zeros(PARTS, width, targets, device=device)
        self.sums = torch.zeros(PARTS, width, device=device)

    def add(self, part: int, x: Tensor, y: Tensor) -> None:
        """x (N, F), y (N, D) of samples of one part."""
        self.gram[part] += x.T @ x
        self.cross[part] += x.T @ y
        self.sums[part] += x.sum(0)

    def solved(self, mean: Tensor, ridge: Tensor) -> list[Tensor]:
        """Weights (F, D) for y - mean: without part 0, ..., without none. ridge (F, F) float64."""
        found = []
        for without in [*range(PARTS), None]:
            kept = [part for part in range(PARTS) if part != without]
            left = self.gram[kept].sum(0).double() + ridge
            right = self.cross[kept].sum(0) - self.sums[kept].sum(0)[:, None] * mean
            found.append(torch.linalg.solve(left, right.double()).float())
        return found


def _solve(
    network: TwoTowerNetwork, paths: Sequence[Path], every_sample: bool
) -> list[tuple[Tensor, Tensor]]:
    """Weights of meaning and of words, without each part and, last, without none: those of the
    network from now on."""
    expansion, device = network.expansion, network.usual.device
    width, words = network.config.text_width, network.config.words
    meaning, worded = (
        _Ridge(size, width, device) for size in (network.config.text_landmarks, words)
    )
    total, count = torch.zeros(width, device=device), 0
    for block in blocks(learnable(stream(paths), every_sample)):
        for part in range(PARTS):
            some = [pair for pair in block if pair.part == part and len(pair.text) > 1]
            if not some:
                continue
            own = functional.normalize(texts_of(some).to(device), dim=-1)
            others = _others(own, some)
            meaning.add(part, expansion.likeness(own), others)
            worded.add(part, expansion.told(network.held(ids_of(some))), others)
            total, count = total + others.sum(0), count + len(others)
    mean = total / count
    among = torch.exp(SHARPNESS * (expansion.landmarks @ expansion.landmarks.T - 1)).double()
    eye = torch.eye(words, dtype=torch.float64, device=device)
    # In float64, and a little more on the diagonal: landmarks may be much alike.
    tiny = 1e-4 * torch.eye(len(among), dtype=torch.float64, device=device)
    weights = list(
        zip(
            meaning.solved(mean, KERNEL_RIDGE * among + tiny),
            worded.solved(mean, WORD_RIDGE * eye),
            strict=True,
        )
    )
    expansion.meaning.copy_(weights[-1][0])
    expansion.words.copy_(weights[-1][1])
    return weights


def _others(own: Tensor, pairs: Sequence[Pair]) -> Tensor:
    """Of every caption the mean of the other captions of its picture: unit rows like `own`."""
    counts = torch.tensor([len(pair.text) for pair in pairs], device=own.device)
    sums = meaned(own, pairs) * counts[:, None]
    return functional.normalize(sums.repeat_interleave(counts, dim=0) - own, dim=-1)


def _expanded(
    network: TwoTowerNetwork,
    block: list[Pair],
    weights: list[tuple[Tensor, Tensor]] | None,
    every_sample: bool,
) -> list[Tensor]:
    """Captions of each pair (C, D), expanded by what was solved without the pair's part."""
    expansion = network.expansion
    if weights is None:
        return [functional.normalize(pair.text.float(), dim=-1) for pair in block]
    own = functional.normalize(texts_of(block).to(network.usual.device), dim=-1)
    likeness, told = expansion.likeness(own), expansion.told(network.held(ids_of(block)))
    of = [pair.part if every_sample or not pair.held_out else PARTS for pair in block]
    parts = torch.tensor([part for part, pair in zip(of, block, strict=True) for _ in pair.text])
    made = torch.zeros_like(own)
    for part in parts.unique().tolist():
        rows = (parts == part).nonzero()[:, 0].to(own.device)
        meaning, words = weights[part]
        made[rows] = joined(own[rows], likeness[rows] @ meaning, told[rows] @ words)
    return list(made.split([len(pair.text) for pair in block]))

"""What is known before heads learn: statistics, landmarks, and captions expanded.

Four passes over the features: a survey, once for all sittings; means, landmarks and how usual words
are; the normal equations of expansion, for each part of the samples apart; and the captions,
expanded and written.
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

from chiasm.pipeline.model.checkpoint import write_whole
from chiasm.pipeline.training.two_tower.ridge import Ridge
from chiasm.pipeline.training.two_tower.stream import (
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
from chiasm.pipeline.two_tower.expansion import joined
from chiasm.pipeline.two_tower.network import TwoTowerConfig, TwoTowerNetwork

FLOOR = 0.05  # added to the spread of a feature: those that hardly vary say nothing
RARE = 3  # a word that fewer pictures hold is no evidence
MOST_WORDS = 4096
KERNEL_RIDGE, WORD_RIDGE = 1.0, 10.0
LEAST_SEVERAL = 25  # pairs with several captions, of each part: fewer are nothing to expand by
SOLVED_AT_ONCE = 2048  # pairs whose equations are summed before they are added to the others
DONE = "prepared.safetensors"
PREPARED = (
    "word_ids", "usual", "kernel.landmarks", "kernel.shift", "kernel.spread",
    "expansion.landmarks", "expansion.meaning", "expansion.rarity", "expansion.words",
)  # fmt: skip


@dataclass(frozen=True)
class Statistics:
    """Of a stream: pairs and captions, of these those that are learned from while choices are made;
    `several`, how many learnable pairs of each part have more than one caption; root: was no
    feature negative; words: tokens that captions of RARE pictures or more hold, the most frequent
    first.
    """

    pairs: int
    learnable: int
    captions: int
    learnable_captions: int
    several: tuple[int, ...]
    root: bool
    words: list[int]

    @property
    def fusible(self) -> bool:
        """Are there pairs to learn a fusion from? It needs another caption to be asked by."""
        return sum(self.several) > 1

    @property
    def expandable(self) -> bool:
        """Are there other captions to expand by, whichever part is left out?"""
        return min(self.several) >= LEAST_SEVERAL

    def fill(self, config: TwoTowerConfig) -> TwoTowerConfig:
        """The config with what there is to fill it: no more landmarks than pictures and captions to
        learn from, these words, and a fusion only where one can be learned."""
        return replace(
            config,
            root=self.root,
            words=len(self.words),
            landmarks=min(config.landmarks, self.learnable),
            text_landmarks=(
                min(config.text_landmarks, self.learnable_captions) if self.expandable else 0
            ),
            asked=min(config.asked, self.learnable),
            fusion=config.fusion if self.fusible else None,
        )

    def counts(self, every_sample: bool) -> tuple[int, int]:
        """Pairs and captions that are learned from."""
        if every_sample:
            return self.pairs, self.captions
        return self.learnable, self.learnable_captions


def survey(paths: Sequence[Path]) -> Statistics:
    """A first look at the features, those held out too: what the config has to know."""
    pairs, captions, several, root, holding = [0, 0], [0, 0], [0] * PARTS, True, Counter[int]()
    for pair in stream(paths):
        pairs[pair.held_out] += 1
        captions[pair.held_out] += len(pair.text)
        several[pair.part] += len(pair.text) > 1 and not pair.held_out
        root = root and bool((pair.image >= 0).all()) and bool((pair.patches >= 0).all())
        holding.update({word for ids in pair.ids for word in ids})
    frequent = [word for word, count in holding.most_common(MOST_WORDS) if count >= RARE]
    return Statistics(
        sum(pairs), pairs[0], sum(captions), captions[0], tuple(several), root, frequent
    )


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
    """A network in which PREPARED is in its place, and `folder` with every caption expanded. A
    preparation that was finished is taken as it is; one that was not is made anew."""
    network = TwoTowerNetwork(config).to(device)
    if (folder / DONE).exists():
        kept = load_file(folder / DONE)
        for name in PREPARED:
            network.get_parameter(name).copy_(kept[name])
        return network
    network.word_ids.copy_(torch.tensor(told.words, dtype=torch.int64))
    _look(network, paths, told, every_sample)
    weights = _solve(network, paths, every_sample) if config.text_landmarks else None
    for path in paths:
        texts = [text for block in blocks(stream([path]))
                 for text in _expanded(network, block, weights, every_sample)]  # fmt: skip
        save_expanded(folder, path, texts)
    kept = {name: network.get_parameter(name).data.cpu().contiguous() for name in PREPARED}
    write_whole(folder / DONE, save(kept))
    return network


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


def _solve(
    network: TwoTowerNetwork, paths: Sequence[Path], every_sample: bool
) -> list[tuple[Tensor, Tensor]]:
    """Weights of meaning and of words, without each part and, last, without none: those of the
    network from now on."""
    expansion, config, device = network.expansion, network.config, network.usual.device
    width, size = config.text_width, config.text_landmarks
    meaning, worded = (Ridge(each, width, PARTS, device) for each in (size, config.words))
    for block in blocks(learnable(stream(paths), every_sample), SOLVED_AT_ONCE):
        for part in range(PARTS):
            some = [pair for pair in block if pair.part == part and len(pair.text) > 1]
            if not some:
                continue
            own = functional.normalize(texts_of(some).to(device), dim=-1)
            others = _others(own, some)
            meaning.add(expansion.likeness(own), others, part)
            worded.add(expansion.told(network.held(ids_of(some))), others, part)
    among = KERNEL_RIDGE * expansion.likeness(expansion.landmarks)
    apart = WORD_RIDGE * torch.eye(config.words, device=device)
    weights = [
        (meaning.solved(among, without), worded.solved(apart, without))
        for without in (*range(PARTS), None)
    ]
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
    """Captions of each pair (C, D) float16, expanded by what was solved without the pair's part."""
    expansion = network.expansion
    if weights is None:
        return [functional.normalize(pair.text.float(), dim=-1).half() for pair in block]
    own = functional.normalize(texts_of(block).to(network.usual.device), dim=-1)
    likeness, told = expansion.likeness(own), expansion.told(network.held(ids_of(block)))
    of = [pair.part if every_sample or not pair.held_out else PARTS for pair in block]
    parts = torch.tensor([part for part, pair in zip(of, block, strict=True) for _ in pair.text])
    made = torch.zeros_like(own)
    for part in parts.unique().tolist():
        rows = (parts == part).nonzero()[:, 0].to(own.device)
        meaning, words = weights[part]
        made[rows] = joined(own[rows], likeness[rows] @ meaning, told[rows] @ words)
    return list(made.half().cpu().split([len(pair.text) for pair in block]))

"""What is computed before the heads are trained: statistics, landmarks, and captions expanded.

Four passes over the features: a survey, once for both stages; means, landmarks and word priors; the
normal equations of caption expansion, a fold at a time; and the captions, expanded and written.
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

from chiasm.pipeline.model.checkpoint import tensors_in_code, tensors_in_files, write_file
from chiasm.pipeline.training.two_tower.held_out import FOLDS
from chiasm.pipeline.training.two_tower.ridge import Ridge
from chiasm.pipeline.training.two_tower.stream import (
    Pair,
    blocks,
    ids_of,
    learnable,
    mean_by_picture,
    save_expanded,
    stream,
    texts_of,
)
from chiasm.pipeline.two_tower.checkpoint import TENSOR_NAMES
from chiasm.pipeline.two_tower.expansion import expand
from chiasm.pipeline.two_tower.network import TwoTowerConfig, TwoTowerNetwork

STD_FLOOR = 0.05  # added to the deviation of a feature: those that hardly vary are noise
MIN_PICTURES = 3  # a word in the captions of fewer pictures is no evidence
MOST_WORDS = 4096
KERNEL_RIDGE, WORD_RIDGE = 1.0, 10.0
MIN_SEVERAL = 25  # pairs with several captions, of each fold, to solve the expansion from
SOLVE_BLOCK = 2048  # pairs whose equations are summed before they are added to the others
DONE = "prepared.safetensors"
PREPARED = (
    "word_ids", "word_prior", "kernel.landmarks", "kernel.mean", "kernel.std",
    "expansion.landmarks", "expansion.kernel_weights", "expansion.idf", "expansion.word_weights",
)  # fmt: skip


@dataclass(frozen=True)
class Statistics:
    """Of a stream: pairs and captions, and those of them that are not held out; several: how many
    learnable pairs of each fold have more than one caption; nonnegative: is no feature negative;
    words: tokens in the captions of MIN_PICTURES or more, the most frequent first.
    """

    pairs: int
    learnable: int
    captions: int
    learnable_captions: int
    several: tuple[int, ...]
    nonnegative: bool
    words: list[int]

    @property
    def fusible(self) -> bool:
        """Are there pairs to train a fusion on? It needs another caption as the query."""
        return sum(self.several) > 1

    @property
    def expandable(self) -> bool:
        """Are there captions to solve the expansion from, whichever fold is left out?"""
        return min(self.several) >= MIN_SEVERAL

    def fill(self, config: TwoTowerConfig) -> TwoTowerConfig:
        """The config with the sizes of these data: no more landmarks than pictures and captions to
        train on, these words, and a fusion only where one can be trained."""
        return replace(
            config,
            sqrt_features=self.nonnegative,
            words=len(self.words),
            landmarks=min(config.landmarks, self.learnable),
            text_landmarks=(
                min(config.text_landmarks, self.learnable_captions) if self.expandable else 0
            ),
            query_bank=min(config.query_bank, self.learnable),
            fusion=config.fusion if self.fusible else None,
        )

    def counts(self, every_sample: bool) -> tuple[int, int]:
        """Pairs and captions that are trained on."""
        if every_sample:
            return self.pairs, self.captions
        return self.learnable, self.learnable_captions


def survey(paths: Sequence[Path]) -> Statistics:
    """One pass over the features, held-out ones too, for the sizes of the config."""
    pairs, captions, several = [0, 0], [0, 0], [0] * FOLDS
    nonnegative, pictures_with = True, Counter[int]()
    for pair in stream(paths):
        pairs[pair.held_out] += 1
        captions[pair.held_out] += len(pair.text)
        several[pair.fold] += len(pair.text) > 1 and not pair.held_out
        nonnegative = nonnegative and bool((pair.image >= 0).all() and (pair.patches >= 0).all())
        pictures_with.update({word for ids in pair.ids for word in ids})
    frequent = [
        word for word, count in pictures_with.most_common(MOST_WORDS) if count >= MIN_PICTURES
    ]
    return Statistics(
        sum(pairs), pairs[0], sum(captions), captions[0], tuple(several), nonnegative, frequent
    )


def evenly_drawn(count: int, size: int) -> list[int]:
    """At most `size` of the indices below `count`, drawn at random, in order; always the same."""
    return sorted(random.Random(0).sample(range(count), min(count, size)))


@torch.no_grad()
def prepare(
    config: TwoTowerConfig,
    paths: Sequence[Path],
    statistics: Statistics,
    folder: Path,
    *,
    every_sample: bool,
    device: torch.device,
) -> TwoTowerNetwork:
    """A network with PREPARED set, and `folder` with every caption expanded. A preparation that was
    finished is loaded; one that was not is made anew."""
    network = TwoTowerNetwork(config).to(device)
    if (folder / DONE).exists():
        kept = tensors_in_code(load_file(folder / DONE), TENSOR_NAMES)
        for name in PREPARED:
            network.get_parameter(name).copy_(kept[name])
        return network
    network.word_ids.copy_(torch.tensor(statistics.words, dtype=torch.int64))
    _set_statistics(network, paths, statistics, every_sample)
    weights = _solve_expansion(network, paths, every_sample) if config.text_landmarks else None
    for path in paths:
        texts = [text for block in blocks(stream([path]))
                 for text in _expanded(network, block, weights, every_sample)]  # fmt: skip
        save_expanded(folder, path, texts)
    kept = {name: network.get_parameter(name).data.cpu().contiguous() for name in PREPARED}
    write_file(folder / DONE, save(tensors_in_files(kept, TENSOR_NAMES)))
    return network


def _set_statistics(
    network: TwoTowerNetwork, paths: Sequence[Path], statistics: Statistics, every_sample: bool
) -> None:
    """Mean and deviation of every feature, priors and idf of words, and landmarks."""
    config, kernel, expansion = network.config, network.kernel, network.expansion
    pairs, captions = statistics.counts(every_sample)
    wanted = set(evenly_drawn(pairs, config.landmarks))
    wanted_texts = set(evenly_drawn(captions, config.text_landmarks))
    images, texts, row, text_row = [], [], 0, 0
    total = squares = torch.zeros(config.image_width, dtype=torch.float64)
    prior = torch.zeros_like(network.word_prior)
    for block in blocks(learnable(stream(paths), every_sample)):
        prior += mean_by_picture(network.bag_of_words(ids_of(block)), block).sum(0)
        for pair in block:
            x = network.sqrt_features(pair.image.float())
            total, squares = total + x.double(), squares + x.double().square()
            if row in wanted:
                images.append(x)
            own = functional.normalize(pair.text.float(), dim=-1)
            texts += [own[i] for i in range(len(own)) if text_row + i in wanted_texts]
            row, text_row = row + 1, text_row + len(own)
    mean = total / row
    kernel.mean.copy_(mean)
    kernel.std.copy_((squares / row - mean * mean).clamp(min=0).sqrt() + STD_FLOOR)
    kernel.landmarks.copy_(kernel.unit_standardised(torch.stack(images).to(kernel.mean.device)))
    network.word_prior.copy_(prior / row)
    if texts:
        expansion.landmarks.copy_(torch.stack(texts))
        # A word that is in no training caption gets no weight.
        positive = network.word_prior.clamp(min=1e-9)
        expansion.idf.copy_(torch.where(network.word_prior > 0, -torch.log(positive), 0.0))


def _solve_expansion(
    network: TwoTowerNetwork, paths: Sequence[Path], every_sample: bool
) -> list[tuple[Tensor, Tensor]]:
    """Kernel and word weights without each fold and, last, of all folds: these are set in the
    network."""
    expansion, config, device = network.expansion, network.config, network.word_prior.device
    width, size = config.text_width, config.text_landmarks
    kernel, words = (Ridge(item, width, FOLDS, device) for item in (size, config.words))
    for block in blocks(learnable(stream(paths), every_sample), SOLVE_BLOCK):
        for fold in range(FOLDS):
            some = [pair for pair in block if pair.fold == fold and len(pair.text) > 1]
            if not some:
                continue
            own = functional.normalize(texts_of(some).to(device), dim=-1)
            others = _mean_of_others(own, some)
            kernel.add(expansion.similarity(own), others, fold)
            words.add(expansion.idf_weighted(network.bag_of_words(ids_of(some))), others, fold)
    kernel_penalty = KERNEL_RIDGE * expansion.similarity(expansion.landmarks)
    word_penalty = WORD_RIDGE * torch.eye(config.words, device=device)
    weights = [
        (kernel.solve(kernel_penalty, without), words.solve(word_penalty, without))
        for without in (*range(FOLDS), None)
    ]
    expansion.kernel_weights.copy_(weights[-1][0])
    expansion.word_weights.copy_(weights[-1][1])
    return weights


def _mean_of_others(own: Tensor, pairs: Sequence[Pair]) -> Tensor:
    """Of every caption the mean of the other captions of its picture: unit rows, as `own`."""
    counts = torch.tensor([len(pair.text) for pair in pairs], device=own.device)
    sums = mean_by_picture(own, pairs) * counts[:, None]
    return functional.normalize(sums.repeat_interleave(counts, dim=0) - own, dim=-1)


def _expanded(
    network: TwoTowerNetwork,
    block: list[Pair],
    weights: list[tuple[Tensor, Tensor]] | None,
    every_sample: bool,
) -> list[Tensor]:
    """Captions of each pair (C, D) float16, expanded by weights solved without the pair's fold."""
    expansion = network.expansion
    if weights is None:
        return [functional.normalize(pair.text.float(), dim=-1).half() for pair in block]
    own = functional.normalize(texts_of(block).to(network.word_prior.device), dim=-1)
    similarity = expansion.similarity(own)
    weighted = expansion.idf_weighted(network.bag_of_words(ids_of(block)))
    of = [pair.fold if every_sample or not pair.held_out else FOLDS for pair in block]
    folds = torch.tensor([fold for fold, pair in zip(of, block, strict=True) for _ in pair.text])
    made = torch.zeros_like(own)
    for fold in folds.unique().tolist():
        rows = (folds == fold).nonzero()[:, 0].to(own.device)
        kernel, words = weights[fold]
        made[rows] = expand(own[rows], similarity[rows] @ kernel, weighted[rows] @ words)
    return list(made.half().cpu().split([len(pair.text) for pair in block]))

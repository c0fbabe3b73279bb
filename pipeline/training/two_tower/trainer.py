"""Heads and fusion, learned together by contrast from a stream of features.

A step draws B pictures with two captions a and b of each, and follows

    w_1 NCE(v, q)  +  w_2 NCE(a, b)  +  w_3 NCE(mean(a, v), b)  +  w_4 NCE(j(a, v), b)  +  BCE(p, s)

NCE being InfoNCE in both directions, each kind with a scale of its own, and q the mean of all the
captions of a picture, which tells of more of it than any one. Captions are expanded ones. p are the
shares of a picture's captions that hold each word, as a network apart from the heads foretells
them, and s those that do. The fusion j learns in the last steps from heads that it does not move:
it has to be better than their mean, and where it is not the mean has lost nothing by it.

What stands in an index is the picture with one caption, what is asked are other words for it: the
third and the fourth term say just that. A picture with one caption only has a part in the first
term and the last: with a for b the others would teach joint vectors to hold the caption and nothing
else.

The learned weights are the exponential moving average. A run is a function of its features and
settings; killed, it goes on from its checkpoint and ends with the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from chiasm.pipeline.model.checkpoint import load_state, save_state
from chiasm.pipeline.model.losses import info_nce
from chiasm.pipeline.training.two_tower.stream import (
    Pair,
    endless,
    ids_of,
    images_of,
    learnable,
    meaned,
    patches_of,
    texts_of,
    words_of,
)
from chiasm.pipeline.two_tower.network import TwoTowerNetwork

FIRST_SCALE = 20.0  # of cosines, learned from there


@dataclass(frozen=True)
class LearnSettings:
    """steps of `batch` pictures; fusion_steps: how many of them, the last, the fusion learns in;
    rate: of the heads and the words, the fusion's is half of it; warmup in steps; dropout: of the
    heads' hidden layers, six tenths of it of what the image head sees (the words' network has its
    own); lost: share of tokens that the fusion does not see. The weights of the four losses are as
    in the formula above.
    """

    steps: int = 300
    fusion_steps: int = 140
    batch: int = 512
    rate: float = 1e-3
    warmup: int = 30
    weight_decay: float = 0.3
    dropout: float = 0.65
    token_dropout: float = 0.3
    lost: float = 0.1
    ema: float = 0.97
    clip: float = 5.0
    to_image: float = 0.7
    to_text: float = 0.5
    to_mean: float = 0.5
    to_joint: float = 2.0
    checkpoint_every: int = 20
    seed: int = 0

    @property
    def fusion_from(self) -> int:
        """The step at which the fusion begins."""
        return max(0, self.steps - self.fusion_steps)


class Learning:
    """The network, its average and its optimiser at one moment."""

    def __init__(self, prepared: TwoTowerNetwork, settings: LearnSettings):
        torch.manual_seed(settings.seed)
        self.device = device = prepared.usual.device
        self.settings, self.step = settings, 0
        self.network = TwoTowerNetwork(prepared.config, settings.dropout, settings.token_dropout)
        still = {k: v.data for k, v in prepared.named_parameters() if not v.requires_grad}
        self.network.load_state_dict(still, strict=False)
        with torch.no_grad():
            self.network.words.bias.copy_(torch.logit(prepared.usual, eps=1e-4))
        self.network.to(device).train()
        self.scales = nn.Parameter(
            torch.full((3,), math.log(FIRST_SCALE), device=device)
        )  # of image, text, joint
        self.learned = {k: v for k, v in self.network.named_parameters() if v.requires_grad}
        self.average = {k: v.detach().clone() for k, v in self.learned.items()}
        groups: dict[tuple[str, float], list[nn.Parameter]] = {}
        for name, each in self.learned.items():
            decay = settings.weight_decay if each.ndim > 1 else 0.0
            groups.setdefault((name.split(".")[0], decay), []).append(each)
        groups.setdefault(("heads", 0.0), []).append(self.scales)
        self.groups = groups
        self.optimiser = torch.optim.AdamW(
            [{"params": group, "weight_decay": decay} for (_, decay), group in groups.items()],
            lr=settings.rate,
            betas=(0.9, 0.98),
        )

    def learn(self, pairs: list[Pair], chance: torch.Generator) -> dict[str, float]:
        """One step; -> its losses."""
        settings = self.settings
        for group, (whose, _) in zip(self.optimiser.param_groups, self.groups, strict=True):
            late, speed = (settings.fusion_from, 0.5) if whose == "fusion" else (0, 1.0)
            group["lr"] = settings.rate * speed * self._pace(late)
        torch.manual_seed(settings.seed * 10**6 + self.step)  # of dropout: a resumed run is alike
        losses = self.losses(pairs, chance)
        self.optimiser.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        for part in ("heads", "words", "fusion"):  # each by itself: their losses are of other sizes
            grown = [each for (whose, _), group in self.groups.items() if whose == part
                     for each in group]  # fmt: skip
            nn.utils.clip_grad_norm_(grown, settings.clip)
        self.optimiser.step()
        self.step += 1
        decay = min(settings.ema, self.step / (self.step + 9))
        with torch.no_grad():
            for name, value in self.learned.items():
                self.average[name].lerp_(value, 1 - decay)
        return {name: loss.item() for name, loss in losses.items()}

    def _pace(self, late: int) -> float:
        """Of the rate: warmup and half a cosine, from step `late` on."""
        settings, step = self.settings, max(0, self.step - late)
        along = step / max(1, settings.steps - late)
        return min(1.0, (step + 1) / settings.warmup) * (1 + math.cos(math.pi * along)) / 2

    def losses(self, pairs: list[Pair], chance: torch.Generator) -> dict[str, Tensor]:
        """The weighted terms of the formula above, those that apply."""
        settings, network, device = self.settings, self.network, self.device
        first, second = two_captions(pairs, chance)
        x = network.rooted(images_of(pairs).to(device))
        v = network.heads.images(x)
        a, b, q = self._texts(pairs, first, second)
        image, text, joint = self.scales.exp()
        losses = {"image": settings.to_image * self._nce(v, q, image)}
        shares = meaned(network.held(ids_of(pairs)), pairs)
        foretold = network.words(network.kernel.scaled(x))
        losses["words"] = functional.binary_cross_entropy_with_logits(
            foretold, shares, reduction="sum"
        ) / len(pairs)
        several = [row for row, pair in enumerate(pairs) if len(pair.text) > 1]
        if len(several) < 2:
            return losses
        v, a, b = v[several], a[several], b[several]
        losses["text"] = settings.to_text * self._nce(a, b, text)
        losses["mean"] = settings.to_mean * self._nce(network.mean(a, v), b, joint)
        if network.fusion is not None and self.step >= settings.fusion_from:
            words, mask = words_of(pairs, first)
            seen = torch.rand(mask.shape, generator=chance) >= settings.lost
            seen[:, 0] = True
            fused = network.fused(
                network.text_modality(
                    words[several].to(device), (mask & seen)[several].to(device), a.detach()
                ),
                network.image_modality(patches_of(pairs)[several].to(device), v.detach()),
            )
            losses["joint"] = settings.to_joint * self._nce(fused, b.detach(), joint.detach())
        return losses

    def _texts(
        self, pairs: list[Pair], first: list[int], second: list[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of B pictures the vectors of two captions and of the mean of all: (B, E') unit rows."""
        counts = torch.tensor([len(pair.text) for pair in pairs])
        starts = counts.cumsum(0) - counts
        vectors = self.network.heads.texts(texts_of(pairs).to(self.device))  # (all captions, E)
        one, other = (starts + torch.tensor(chosen) for chosen in (first, second))
        return (
            vectors[one.to(self.device)],
            vectors[other.to(self.device)],
            functional.normalize(meaned(vectors, pairs), dim=-1),
        )

    @staticmethod
    def _nce(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        """InfoNCE of rows (B, E') with rows, every other one being wrong."""
        return info_nce(x, y, scale, torch.zeros(len(x), len(x), dtype=torch.bool, device=x.device))

    def save(self, path: Path) -> None:
        """Write everything that a step changes; what was prepared lies beside it already."""
        moments = {
            f"optimiser.{i}.{name}": tensor
            for i, state in self.optimiser.state_dict()["state"].items()
            for name, tensor in state.items()
        }
        weights = {f"weights.{k}": v for k, v in self.learned.items()}
        average = {f"average.{k}": v for k, v in self.average.items()}
        tensors = {"scales": self.scales, **weights, **average, **moments}
        save_state(path, tensors, {"step": self.step})

    def resume(self, path: Path) -> None:
        """Take over what `save` wrote."""
        tensors, facts = load_state(path)
        self.step = facts["step"]
        with torch.no_grad():
            for name, value in self.learned.items():
                value.copy_(tensors[f"weights.{name}"])
                self.average[name].copy_(tensors[f"average.{name}"])
            self.scales.copy_(tensors["scales"])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _below(tensors, "optimiser.").items():
            i, moment = name.split(".")
            moments.setdefault(int(i), {})[moment] = tensor
        self.optimiser.load_state_dict(self.optimiser.state_dict() | {"state": moments})


def learn(
    paths: Sequence[Path],
    prepared: TwoTowerNetwork,
    settings: LearnSettings,
    *,
    expanded: Path,
    every_sample: bool,
    checkpoint: Path,
    told: Callable[[int, dict[str, float]], None],
) -> TwoTowerNetwork:
    """Learn to the end, or go on from the checkpoint -> the average, in evaluation mode, with what
    was prepared. expanded: the folder of captions; every_sample: also from those held out.
    """
    learning = Learning(prepared, settings)
    if checkpoint.exists():
        learning.resume(checkpoint)
    pairs = learnable(endless(paths, settings.seed, expanded), every_sample)
    for batch in _batches(pairs, settings.batch, learning.step, settings.steps):
        chance = torch.Generator().manual_seed(settings.seed * 10**6 + learning.step)
        losses = learning.learn(batch, chance)
        told(learning.step, losses)
        if learning.step % settings.checkpoint_every == 0 or learning.step == settings.steps:
            learning.save(checkpoint)
    network = TwoTowerNetwork(prepared.config).to(learning.device).eval()
    network.load_state_dict(prepared.state_dict() | learning.average)
    return network


def _batches(pairs: Iterator[Pair], size: int, first: int, last: int) -> Iterator[list[Pair]]:
    """Batches `first` to `last` of a stream; those before are read past."""
    for _ in islice(pairs, first * size):
        pass
    for _ in range(first, last):
        yield list(islice(pairs, size))


def two_captions(pairs: list[Pair], chance: torch.Generator) -> tuple[list[int], list[int]]:
    """For each pair two of its captions by chance, different ones where it has more than one."""
    first, second = [], []
    for pair in pairs:
        count = len(pair.text)
        order = torch.randperm(count, generator=chance).tolist()
        first.append(order[0])
        second.append(order[min(1, count - 1)])
    return first, second


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

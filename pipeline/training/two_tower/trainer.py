"""Heads and fusion, trained together by contrast on a stream of features.

A step draws B pictures with two captions a and b of each, and minimises

    w_1 NCE(v, q)  +  w_2 NCE(a, b)  +  w_3 NCE(mean(a, v), b)  +  w_4 NCE(j(a, v), b)  +  BCE(p, s)

NCE is InfoNCE in both directions, each term with a scale of its own; copies of a picture, and a
picture that a batch has twice, are not negatives of each other. q is the mean of all captions
of a picture, which covers more of it than any single one. Captions are expanded ones. s are the
shares of a picture's captions that contain each word, p their predictions by a network apart from
the heads. The fusion j is trained in the last steps on heads that it does not change: where it is
no better than their mean, the mean has lost nothing by it.

An index holds the picture with one caption, and queries are other words for it: terms three and
four are that task. A picture with one caption has a part in the first and the last term only: with
a for b the others would teach joint vectors to copy the caption.

The trained weights are the exponential moving average. A run is a function of its features and
settings; killed, it goes on from its checkpoint and ends with the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from chiasm.pipeline.metrics import ranks_of, recalls_of_ranks
from chiasm.pipeline.model.checkpoint import (
    load_state,
    names_in_code,
    names_in_files,
    require_finite_tensors,
    save_state,
    tensors_in_code,
    tensors_in_files,
)
from chiasm.pipeline.model.losses import info_nce
from chiasm.pipeline.training.optim import (
    Ema,
    Optimiser,
    decay_groups,
    require_finite,
    warmup_times_cosine,
    with_prefix,
    without_prefix,
)
from chiasm.pipeline.training.two_tower.stream import (
    Pair,
    endless,
    ids_of,
    images_of,
    learnable,
    mean_by_picture,
    patches_of,
    same_picture,
    texts_of,
    words_of,
)
from chiasm.pipeline.two_tower.checkpoint import TENSOR_NAMES
from chiasm.pipeline.two_tower.network import TwoTowerNetwork

INITIAL_SCALE = 20.0  # of cosines, trained from there
FUSION_RATE = 0.5  # of the learning rate of the heads
# Name in code -> name in settings.json.
SETTINGS_NAMES = {"learning_rate": "rate", "token_mask_rate": "lost"}


@dataclass(frozen=True)
class TrainSettings:
    """steps of `batch` pictures; fusion_steps: how many of them, the last, train the fusion;
    learning_rate: the highest, of the heads and the word classifier; warmup: steps; dropout: of the
    heads' hidden layers, six tenths of it at the input of the image head; token_mask_rate: share of
    text tokens masked from the fusion. to_image ... to_joint: weights of the first four losses.
    """

    steps: int = 300
    fusion_steps: int = 140
    batch: int = 512
    learning_rate: float = 1e-3
    warmup: int = 30
    weight_decay: float = 0.3
    dropout: float = 0.65
    token_dropout: float = 0.3
    token_mask_rate: float = 0.1
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
        """The first step that trains the fusion."""
        return max(0, self.steps - self.fusion_steps)

    def to_json(self) -> dict[str, Any]:
        """Plain values by their names in files."""
        return names_in_files(asdict(self), SETTINGS_NAMES)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> TrainSettings:
        """Inverse of `to_json`; TypeError for unknown fields."""
        return cls(**names_in_code(fields, SETTINGS_NAMES))


class Training:
    """The network, its average and its optimiser at one moment; `step`: steps done."""

    def __init__(self, prepared: TwoTowerNetwork, settings: TrainSettings):
        torch.manual_seed(settings.seed)
        self.device = device = prepared.word_prior.device
        self.settings, self.step = settings, 0
        self.network = TwoTowerNetwork(prepared.config, settings.dropout, settings.token_dropout)
        frozen = {k: v.data for k, v in prepared.named_parameters() if not v.requires_grad}
        self.network.load_state_dict(frozen, strict=False)
        with torch.no_grad():
            bias = torch.logit(prepared.word_prior, eps=1e-4)
            self.network.word_classifier.bias.copy_(bias)
        self.network.to(device).train()
        # Scales of image, text and joint vectors.
        self.scales = nn.Parameter(torch.full((3,), math.log(INITIAL_SCALE), device=device))
        self.trained = {k: v for k, v in self.network.named_parameters() if v.requires_grad}
        self.ema = Ema(self.trained, settings.ema)
        groups = decay_groups(
            [*self.trained.items(), ("heads.scales", self.scales)],
            settings.weight_decay,
            decays=lambda _, parameter: parameter.ndim > 1,
            group=lambda name: name.split(".")[0],  # heads, word_classifier or fusion
        )
        self.optimiser = Optimiser(groups, settings.learning_rate, settings.clip)

    def train_step(self, pairs: list[Pair], generator: torch.Generator) -> dict[str, float]:
        """One step; -> its losses, `loss` being their sum."""
        losses = self.backward(pairs, generator)
        self.apply()
        return losses

    def backward(self, pairs: list[Pair], generator: torch.Generator) -> dict[str, float]:
        """The gradients of a batch; -> its losses, `loss` being their sum. ChiasmError where one of
        them is not finite."""
        # Of dropout, so that a resumed run draws the same.
        torch.manual_seed(self.settings.seed * 10**6 + self.step)
        losses = self.losses(pairs, generator)
        total = torch.stack(list(losses.values())).sum()
        self.optimiser.backward(total)
        found = {name: loss.item() for name, loss in {"loss": total, **losses}.items()}
        require_finite(found, f"training, step {self.step + 1}")
        return found

    def apply(self) -> None:
        """Update weights and average by the gradients. Heads, word classifier and fusion are
        clipped by themselves: their losses differ in size. ChiasmError where a gradient is not
        finite: nothing is updated."""
        heads, fusion = self._factor(0), FUSION_RATE * self._factor(self.settings.fusion_from)
        factors = {"heads": heads, "word_classifier": heads, "fusion": fusion}
        self.optimiser.apply(factors, f"training, step {self.step + 1}")
        self.ema.update(self.trained.items(), updates=self.step)
        self.step += 1

    def _factor(self, first: int) -> float:
        """Of the learning rate, from step `first` on."""
        settings = self.settings
        step, steps = max(0, self.step - first), settings.steps - first
        return warmup_times_cosine(step, steps, settings.warmup)

    def losses(self, pairs: list[Pair], generator: torch.Generator) -> dict[str, Tensor]:
        """The weighted terms of the formula above, those that apply."""
        settings, network, device = self.settings, self.network, self.device
        first, second = two_captions(pairs, generator)
        x = network.sqrt_features(images_of(pairs).to(device))
        v = network.heads.images(x)
        a, b, q = self._texts(pairs, first, second)
        image, text, joint = self.scales.exp()
        same = same_picture(pairs).to(device)
        losses = {"image": settings.to_image * info_nce(v, q, image, same)}
        shares = mean_by_picture(network.bag_of_words(ids_of(pairs)), pairs)
        predicted = network.word_classifier(network.kernel.standardised(x))
        losses["words"] = functional.binary_cross_entropy_with_logits(
            predicted, shares, reduction="sum"
        ) / len(pairs)
        several = [row for row, pair in enumerate(pairs) if len(pair.text) > 1]
        if len(several) < 2:
            return losses
        v, a, b, same = v[several], a[several], b[several], same[several][:, several]
        losses["text"] = settings.to_text * info_nce(a, b, text, same)
        losses["mean"] = settings.to_mean * info_nce(network.mean(a, v), b, joint, same)
        if network.fusion is not None and self.step >= settings.fusion_from:
            words, mask = words_of(pairs, first)
            kept = torch.rand(mask.shape, generator=generator) >= settings.token_mask_rate
            kept[:, 0] = True
            fused = network.fuse(
                network.text_modality(
                    words[several].to(device), (mask & kept)[several].to(device), a.detach()
                ),
                network.image_modality(patches_of(pairs)[several].to(device), v.detach()),
            )
            losses["joint"] = settings.to_joint * info_nce(fused, b.detach(), joint.detach(), same)
        return losses

    def _texts(
        self, pairs: list[Pair], first: list[int], second: list[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of B pictures the vectors of two captions and of the mean of all: (B, E') unit rows."""
        counts = torch.tensor([len(pair.text) for pair in pairs])
        starts = counts.cumsum(0) - counts
        vectors = self.network.heads.texts(texts_of(pairs).to(self.device))  # (all captions, E)
        one, other = (starts + torch.tensor(selected) for selected in (first, second))
        return (
            vectors[one.to(self.device)],
            vectors[other.to(self.device)],
            functional.normalize(mean_by_picture(vectors, pairs), dim=-1),
        )

    @torch.inference_mode()
    def held_out_r1(self, pairs: Sequence[Pair]) -> float:
        """R@1 of the averaged heads on held-out pairs: of all captions, each against all pictures.
        Kernel ridge and matching are not solved yet."""
        heads = deepcopy(self.network.heads).eval()
        heads.load_state_dict(without_prefix(self.ema.tensors, "heads."))
        images = heads.images(self.network.sqrt_features(images_of(pairs).to(self.device)))
        ranks = [
            ranks_of(
                (heads.texts(pair.text.float().to(self.device)) @ images.T).cpu().numpy(),
                np.full(len(pair.text), row),
            )
            for row, pair in enumerate(pairs)
        ]
        return recalls_of_ranks(np.concatenate(ranks))["r1"]

    def save(self, path: Path) -> None:
        """Write everything that a step changes; what was prepared lies beside it already.
        ChiasmError where a tensor is not finite: nothing is written."""
        tensors = {
            "scales": self.scales,
            **with_prefix(self.trained, "weights."),
            **with_prefix(self.ema.tensors, "average."),
            **with_prefix(self.optimiser.tensors(), "optimiser."),
        }
        require_finite_tensors(tensors, f"state of a training after step {self.step}")
        save_state(path, tensors_in_files(tensors, TENSOR_NAMES), {"step": self.step})

    def resume(self, path: Path) -> None:
        """Take over what `save` wrote."""
        saved, facts = load_state(path)
        tensors = tensors_in_code(saved, TENSOR_NAMES)
        self.step = facts["step"]
        weights = without_prefix(tensors, "weights.")
        with torch.no_grad():
            for name, value in self.trained.items():
                value.copy_(weights[name])
            self.scales.copy_(tensors["scales"])
        self.ema.load(without_prefix(tensors, "average."))
        self.optimiser.load(without_prefix(tensors, "optimiser."))


def train(
    paths: Sequence[Path],
    prepared: TwoTowerNetwork,
    settings: TrainSettings,
    *,
    expanded: Path,
    every_sample: bool,
    checkpoint: Path,
    on_step: Callable[[Training, dict[str, float]], None],
) -> TwoTowerNetwork:
    """Train to the end, or go on from the checkpoint -> the average, in evaluation mode, with what
    was prepared. expanded: the folder of captions; every_sample: on held-out samples, too; on_step:
    called after each step with its losses.
    """
    training = Training(prepared, settings)
    if checkpoint.exists():
        training.resume(checkpoint)
    pairs = learnable(endless(paths, settings.seed, expanded), every_sample)
    for batch in _batches(pairs, settings.batch, training.step, settings.steps):
        generator = torch.Generator().manual_seed(settings.seed * 10**6 + training.step)
        losses = training.train_step(batch, generator)
        on_step(training, losses)
        if training.step % settings.checkpoint_every == 0 or training.step == settings.steps:
            training.save(checkpoint)
    network = TwoTowerNetwork(prepared.config).to(training.device).eval()
    network.load_state_dict(prepared.state_dict() | training.ema.tensors)
    return network


def _batches(pairs: Iterator[Pair], size: int, first: int, last: int) -> Iterator[list[Pair]]:
    """Batches `first` to `last` of a stream; those before are skipped."""
    for _ in islice(pairs, first * size):
        pass
    for _ in range(first, last):
        yield list(islice(pairs, size))


def two_captions(pairs: list[Pair], generator: torch.Generator) -> tuple[list[int], list[int]]:
    """Indices of two random captions of each pair, different ones where it has more than one."""
    first, second = [], []
    for pair in pairs:
        count = len(pair.text)
        order = torch.randperm(count, generator=generator).tolist()
        first.append(order[0])
        second.append(order[min(1, count - 1)])
    return first, second

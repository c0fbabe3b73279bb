"""The stages of a training: what each learns, from which batches, by which losses.

Align before fuse (Li et al., ALBEF, 2021). First the towers are trained: a step encodes a batch's
pictures once and two captions of each; its loss is the mean InfoNCE of both plus those of the
probes (objective.py). Then the towers are frozen, and fusion and matching are trained on top of
them: the vectors of a picture or of a text alone no longer change, and a step costs no backward
pass through the towers. The joint vector begins as the best weighted mean; what it adds to that,
one matrix, is trained alone, on large batches that go through the model once and are kept; then
matching is calibrated, and a joint vector that does not beat the mean becomes it. Then image tokens
are trained (image_tokens.py). Last, a decoder is trained on all of this to write, and to draw, what
each task asks for.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from chiasm.pipeline.model.config import ModelConfig
from chiasm.pipeline.model.joint import JointNetwork
from chiasm.pipeline.model.tokenizer import Tokenizer
from chiasm.pipeline.training.optim import cosine, warmup_then_cosine
from chiasm.pipeline.training.pocket.data import DataSettings, train_batch
from chiasm.pipeline.training.pocket.evaluate import tower_recall
from chiasm.pipeline.training.pocket.evaluate_tasks import decoder_accuracy
from chiasm.pipeline.training.pocket.image_tokens import PieceSettings, piece_batch
from chiasm.pipeline.training.pocket.objective import Objective
from chiasm.pipeline.training.pocket.settings import TrainSettings, task_settings
from chiasm.pipeline.training.pocket.task_data import TaskSettings, task_batch

Evaluate = Callable[[JointNetwork], dict[str, Any]]
# Of image tokens. After 130 processor seconds reconstructions kept 0.60 of R@1 with the features of
# the frozen tower, 0.52 without (400 scenes, another tower's judgement).
IMAGE_TOKEN_WEIGHTS = {"pixels": 4.0, "edges": 0.5, "features": 0.3}
IMAGE_TOKENS_RATE = 3.0  # a few convolutions bear three times the rate of transformers
# Of the decoder's losses; others 1. Most of what codes and captions lose is left open by what they
# are written from, so that it outweighs the others. With this and twice as many translations, 1,800
# more steps took translations from 0.889 to 0.936, questions from 0.965 to 0.978 (900 scenes).
TASK_WEIGHTS = {"ask": 3.0, "translate": 3.0}
PROBE_FLOOR = 0.1  # of the probes' weight, at the end of the first stage
# Prefixes of the names of those parameters of `Objective` that a stage trains.
TOWERS = (
    "model.image.", "model.text.", "model.image_projection.", "model.text_projection.",
    "model.log_scale", "probes.places.", "probes.background.", "probes.kinds.", "probes.bag.",
    "probes.relations_of_vector.", "probes.relations_of_tokens.",
)  # fmt: skip
FUSION = (
    "model.fusion.", "model.matching.", "probes.pool.", "probes.pooled_disagreement.",
    "probes.patch_disagreement.", "probes.word_location.", "probes.word_weight.",
    "probes.log_scale",
)  # fmt: skip
IMAGE_TOKENS = ("model.image_tokens.",)
DECODER = ("model.decoder.",)
RESIDUAL = ("model.fusion.residual.",)
# What joint vectors are for: captions that leave things unsaid, among scenes and their twins.
JOINT_DATA = {"hard": 0.0, "twins": 1.0, "partial": 0.75}
FUSION_LOSSES = ("match", "align", "discord", "ground", "where", "follow")  # and `joint`


class Draw(Protocol):
    """Makes a process's rows of the batch of a step."""

    def __call__(
        self, step: int, settings: Any, tokenizer: Tokenizer, rank: int, world_size: int
    ) -> Any: ...


@dataclass(frozen=True)
class LossWeight:
    """The weight of a loss in the sum: `start`, falling to `floor` times that along a cosine."""

    start: float
    floor: float = 1.0

    def at(self, progress: float) -> float:
        """At progress 0 to 1 of a cycle."""
        return self.start * cosine(progress, self.floor)


@dataclass(frozen=True)
class Stage:
    """One stage of a training.

    name: in logs and checkpoints. data: what `draw` makes its batches of. trained: prefixes of the
    names of the parameters of `Objective` that learn; all others stay at the average of the stages
    before. losses(objective, batch, generator): float32 scalars by name, minimised in the sum by
    `weights`. evaluation(average, tokenizer, settings): made once in a run of a stage -> a function
    of the average of a step that gives fields of a record, every `evaluate_every` steps and at the
    end; None: nothing to evaluate. begins_joint: scenes of the galleries by which the joint vector
    begins as the best weighted mean; 0: it goes on. calibrated: scenes that calibrate matching at
    the end, and of the galleries that the joint vector has to win on; 0 for none of this. rate: the
    highest learning rate of the stage, as a multiple of the settings'. cycles: relative lengths of
    those in which the rate and the weights of losses go from their start to their end. keep: makes
    of a batch what stays the same while the stage learns, and is what its losses are of; rounds:
    how often the stage goes through what it keeps. It has no checkpoint before its end.
    """

    name: str
    steps: int
    data: DataSettings | PieceSettings | TaskSettings
    draw: Draw
    trained: tuple[str, ...]
    losses: Callable[[Objective, Any, torch.Generator], dict[str, Tensor]]
    weights: Mapping[str, LossWeight]
    evaluation: Callable[[JointNetwork, Tokenizer, TrainSettings], Evaluate] | None = None
    evaluate_every: int = 1
    begins_joint: int = 0
    calibrated: int = 0
    rate: float = 1.0
    cycles: tuple[int, ...] = (1,)
    rounds: int = 1
    keep: Callable[[Objective, Any, torch.Generator], Any] | None = None

    def cycle_at(self, step: int) -> tuple[int, int]:
        """Of a step of the stage: how many of its cycle come before it, and how many a cycle has
        (Loshchilov and Hutter, SGDR: Stochastic Gradient Descent with Warm Restarts, 2017)."""
        parts = itertools.accumulate(self.cycles, initial=0)
        ends = [round(self.steps * part / sum(self.cycles)) for part in parts]
        first, end = next(
            cycle for cycle in itertools.pairwise(ends) if step < cycle[1] or cycle[1] == self.steps
        )
        return step - first, end - first

    def rate_at(self, step: int, warmup: float) -> float:
        """Of the highest learning rate: in each cycle a linear warm-up over a share `warmup` of its
        steps, then a cosine down to a hundredth."""
        return warmup_then_cosine(*self.cycle_at(step), warmup)

    def total(self, losses: Mapping[str, Tensor], progress: float) -> Tensor:
        """The weighted sum of the losses, at progress 0 to 1 of a cycle."""
        terms = [self.weights[name].at(progress) * loss for name, loss in losses.items()]
        return torch.stack(terms).sum()


def stages_of(settings: TrainSettings) -> tuple[Stage, ...]:
    """The stages that a training goes through, in order; at least one."""
    facts, words = LossWeight(settings.facts, PROBE_FLOOR), LossWeight(settings.words)
    towers = Stage(
        "towers",
        settings.steps,
        settings.data,
        train_batch,
        TOWERS,
        Objective.tower_losses,
        {
            "contrast": LossWeight(1.0),
            **dict.fromkeys(("facts", "readings"), facts),
            **dict.fromkeys(("words", "relations"), words),
        },
        evaluation=tower_recall,
        evaluate_every=settings.evaluate_every,
        cycles=settings.cycles,
    )
    fused = settings.model.fusion is not None and settings.fusion_steps
    drawing = settings.model.image_tokens is not None and settings.image_token_steps
    writing = settings.model.decoder is not None and settings.decoder_steps
    of_fusion = _fusion_stages(settings) if fused else ()
    of_tokens = [_image_tokens_stage(settings)] if drawing else ()
    return (towers, *of_fusion, *of_tokens, *([_decoder_stage(settings)] if writing else ()))


def _fusion_stages(settings: TrainSettings) -> tuple[Stage, ...]:
    """Fusion and matching, then the joint vector alone, where that has steps."""
    joint = Stage(
        "joint",
        settings.joint_steps,
        replace(settings.data, batch=settings.joint_batch, **JOINT_DATA),
        train_batch,
        RESIDUAL,
        Objective.joint_losses,
        {"joint": LossWeight(1.0)},
        begins_joint=settings.calibrated,
        calibrated=settings.calibrated,
        rounds=settings.joint_rounds,
        keep=Objective.joint_features,
    )
    fusion = Stage(
        "fusion",
        settings.fusion_steps,
        replace(settings.data, batch=settings.fusion_batch),
        train_batch,
        FUSION,
        Objective.fusion_losses,
        dict.fromkeys(FUSION_LOSSES, LossWeight(settings.match))
        | {"joint": LossWeight(settings.joint)},
        begins_joint=settings.calibrated,
        cycles=settings.fusion_cycles,
        calibrated=0 if joint.steps else settings.calibrated,
    )
    return (fusion, joint) if joint.steps else (fusion,)


def _image_tokens_stage(settings: TrainSettings) -> Stage:
    assert settings.model.image_tokens is not None
    scenes = replace(settings.data, batch=settings.image_token_batch)
    return Stage(
        "image tokens",
        settings.image_token_steps,
        PieceSettings(scenes, settings.model.image_tokens.stride),
        piece_batch,
        IMAGE_TOKENS,
        Objective.image_token_losses,
        {name: LossWeight(weight) for name, weight in IMAGE_TOKEN_WEIGHTS.items()},
        rate=IMAGE_TOKENS_RATE,
    )


def _decoder_stage(settings: TrainSettings) -> Stage:
    tasks = task_settings(settings)
    names = (*tasks.examples, *tasks.pictures)
    return Stage(
        "decoder",
        settings.decoder_steps,
        tasks,
        task_batch,
        DECODER,
        Objective.decoder_losses,
        {name: LossWeight(TASK_WEIGHTS.get(name, 1.0)) for name in names},
        evaluation=decoder_accuracy,
        evaluate_every=settings.decoder_evaluate_every,
        cycles=settings.decoder_cycles,
    )


def ends_of(stages: tuple[Stage, ...]) -> tuple[int, ...]:
    """How many steps of the training are done at the end of each stage."""
    return tuple(itertools.accumulate(stage.steps for stage in stages))


def begun_config(config: ModelConfig, stages: tuple[Stage, ...], step: int) -> ModelConfig:
    """The config without what a stage trains that has not begun after so many steps."""
    later = [
        stage.trained
        for stage, first in zip(stages[1:], ends_of(stages)[:-1], strict=True)
        if step <= first
    ]
    fusion = None if FUSION in later else config.fusion
    tokens = None if IMAGE_TOKENS in later else config.image_tokens
    decoder = None if DECODER in later else config.decoder
    return replace(config, fusion=fusion, image_tokens=tokens, decoder=decoder)

"""The settings of a training, and the names that they have in its state on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from chiasm.pipeline.model.checkpoint import CONFIG_NAMES, names_in_files
from chiasm.pipeline.model.config import (
    DecoderConfig,
    FusionConfig,
    ImageTokensConfig,
    ModelConfig,
)
from chiasm.pipeline.model.tasks import TASKS
from chiasm.pipeline.scenes.world import WORLD_1, WORLD_2
from chiasm.pipeline.training.pocket.data import DataSettings
from chiasm.pipeline.training.pocket.task_data import TaskSettings

# Name in code -> name in state.safetensors, as in model/checkpoint.py.
STATE_CONFIG_NAMES = {
    "learning_rate": "rate",
    "data": "feed",
    **{f"model.{path}": name for path, name in CONFIG_NAMES.items()},
}


@dataclass(frozen=True)
class TrainSettings:
    """Lengths, rates and weights of a training; the seed is that of `data`.

    steps, fusion_steps, image_token_steps, decoder_steps: of the stages (stages.py); cycles,
    fusion_cycles, decoder_cycles: of the first, of the second and of the last, their relative
    lengths, ValueError for none or any below 1; each is a warm restart, in which the learning rate
    falls from its highest to its lowest (Loshchilov and Hutter, SGDR, 2017); learning_rate: the
    highest of each. The second stage takes many small steps, of `fusion_batch` pictures, the third
    few large ones, of `joint_batch`: of 32 pictures all that are alike are twins, and a joint
    vector learns no more from them than the mean knows; the fourth, that of image tokens, pieces of
    `image_token_batch` pictures; the fifth, steps of `decoder_batch` pictures with `examples` of
    each, and of `pictures` more, by task: tasks that are learned slowly have more.
    fusion_per_joint: steps of the second stage for each batch of the third, which goes through the
    model once; joint_rounds: how often the one matrix that the third stage trains goes through what
    is kept of them: one round teaches too little, and few batches are learned by heart. facts:
    weight of the facts and readings losses at the start; it falls to a tenth along a cosine. words:
    weight of the words and relations losses; with less, the kinds do not enter the vectors, and the
    text tower drops relations. match: weight of all losses of the second stage but the joint
    vector's, joint: of that. ema: decay of the average. corpus: scenes whose texts train the
    tokenizer; calibrated: scenes that calibrate matching at the end of the third stage, and of each
    gallery that decides on the joint vector (calibrate.py). gallery: scenes that the towers are
    evaluated on, every `evaluate_every` steps, and that the report is about. decoder_gallery:
    scenes that the decoder is, one example of each task, every `decoder_evaluate_every` steps:
    writing takes a pass a token, and of 200 the standard error of a share, at most 3.5 points,
    shows which tasks have been learned. Picture side, context and vocabulary of `model` are
    replaced by those of `data` and of the trained tokenizer. Without `model.fusion` there are no
    second and third stage, without `model.image_tokens` no fourth and no drawing, without
    `model.decoder` no fifth. With one of them, but 0 steps of it, it is that of a model that the
    training begins on, and stays as it is.
    """

    steps: int = 3600
    cycles: tuple[int, ...] = (2, 1)
    fusion_steps: int = 14000
    fusion_cycles: tuple[int, ...] = (4, 3)
    fusion_batch: int = 32
    fusion_per_joint: int = 35
    joint_rounds: int = 10
    joint_batch: int = 512
    image_token_steps: int = 5000
    image_token_batch: int = 8
    decoder_steps: int = 5000
    decoder_cycles: tuple[int, ...] = (3, 2)
    decoder_batch: int = 48
    learning_rate: float = 1e-3
    warmup: float = 0.03
    weight_decay: float = 0.05
    facts: float = 0.5
    words: float = 1.0
    match: float = 1.0
    joint: float = 0.5
    ema: float = 0.998
    clip: float = 1.0
    corpus: int = 6000
    calibrated: int = 1000
    log_every: int = 20
    checkpoint_every: int = 100
    evaluate_every: int = 200
    gallery_seed: int = 271828
    gallery: int = 1000
    decoder_evaluate_every: int = 500
    decoder_gallery: int = 200
    data: DataSettings = field(
        default_factory=lambda: DataSettings(world=WORLD_2.name, other_world=WORLD_1.name)
    )
    model: ModelConfig = field(
        default_factory=lambda: ModelConfig(
            fusion=FusionConfig(residual_of_vectors=True),
            decoder=DecoderConfig(reads_fused=True),
            image_tokens=ImageTokensConfig(),
        )
    )
    examples: Mapping[str, float] = field(
        default_factory=lambda: {"ask": 5, "caption": 0.25, "translate": 3, "imagine": 0.5}
    )
    pictures: Mapping[str, int] = field(default_factory=lambda: {"sentiment": 8})

    def __post_init__(self) -> None:
        for name in ("cycles", "fusion_cycles", "decoder_cycles"):
            cycles = getattr(self, name)
            if not cycles or min(cycles) < 1:
                raise ValueError(f"{name} {cycles}: expected one or more of 1 or more")

    @property
    def joint_steps(self) -> int:
        """Steps of the third stage; 0 without a second."""
        batches = self.fusion_steps // self.fusion_per_joint if self.model.fusion else 0
        return batches * self.joint_rounds

    @property
    def all_steps(self) -> int:
        """Steps of all stages together."""
        fusion = self.fusion_steps + self.joint_steps if self.model.fusion else 0
        tokens = self.image_token_steps if self.model.image_tokens else 0
        return self.steps + fusion + tokens + (self.decoder_steps if self.model.decoder else 0)

    def to_json(self) -> dict[str, Any]:
        """Plain values by their names in files."""
        return json.loads(json.dumps(names_in_files(asdict(self), STATE_CONFIG_NAMES)))


def task_settings(settings: TrainSettings) -> TaskSettings:
    """What batches of the decoder's stage are made of. UsageError for tasks that cannot be drawn,
    or that the decoder has no prefix for."""
    # Both worlds' values are in the larger one; moods are in no other.
    scenes = replace(settings.data, batch=settings.decoder_batch, other_world="")
    decoder = settings.model.decoder or DecoderConfig()
    examples = {
        task: count
        for task, count in settings.examples.items()
        if settings.model.image_tokens or task != "imagine"
    }
    return TaskSettings(scenes, examples, settings.pictures, decoder.context, decoder.prefixes)


def measured_tasks(settings: TrainSettings) -> TaskSettings:
    """`task_settings` of those tasks that the decoder has in every language: one that was kept of
    another training may have fewer than are drawn here."""
    prefixes = set(settings.model.decoder.prefixes if settings.model.decoder else ())
    has = {name for name, task in TASKS.items() if prefixes.issuperset(task.prefixes)}
    return task_settings(
        replace(
            settings,
            examples={task: count for task, count in settings.examples.items() if task in has},
            pictures={task: count for task, count in settings.pictures.items() if task in has},
        )
    )

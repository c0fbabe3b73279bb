"""Seed and step -> one batch for the decoder: pictures, and what to write of each by task.

Scenes are drawn as those of the other stages are (data.py), and none shows a withheld combination.
Each picture has the same number of examples of each task, in either language. Where a scene has
none of a task, it has fewer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from chiasm.pipeline.model.preprocess import to_pixels
from chiasm.pipeline.model.tasks import PREFIXES, TASKS, TargetIds
from chiasm.pipeline.model.tokenizer import END, PAD, Tokenizer, normalise
from chiasm.pipeline.scenes.draw import picture
from chiasm.pipeline.scenes.examples import Example, caption_example
from chiasm.pipeline.scenes.questions import question
from chiasm.pipeline.scenes.vocabulary import LANGUAGES
from chiasm.pipeline.scenes.world import Scene, World
from chiasm.pipeline.training.pocket.data import WORLDS, DataSettings, scenes_of
from chiasm.pipeline.training.pocket.targets import UNKNOWN

# Task -> an example of it about a scene in a language, None where the scene has none.
DRAWN: Mapping[str, Callable[[Scene, random.Random, str, World], Example | None]] = {
    "caption": lambda scene, rng, language, _: caption_example(scene, rng, language),
    "ask": lambda scene, rng, language, world: question(scene, rng, language, kinds=world.kinds),
}


@dataclass(frozen=True)
class TaskSettings:
    """scenes: how they are drawn, `batch` of them a step in each process. examples: of each
    picture, by task. target: longest target in tokens; what is longer is cut."""

    scenes: DataSettings = field(default_factory=lambda: DataSettings(batch=48))
    examples: Mapping[str, int] = field(default_factory=lambda: {"ask": 6, "caption": 1})
    target: int = 96


@dataclass(frozen=True)
class TaskRows:
    """R examples of one task: pictures int64 (R,), the row of the picture of each; sources int64
    (R, S), PAD at the end, None where the task reads no text; inputs int64 (R, T), the prefix and
    the target without its end; targets int64 (R, T), the next id of each input, UNKNOWN after the
    end; examples: as they were drawn.
    """

    pictures: np.ndarray
    sources: np.ndarray | None
    inputs: np.ndarray
    targets: np.ndarray
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class TaskBatch:
    """A process's rows of a batch: pixels uint8 (B, 3, S, S); its examples by task, in an order
    that is the same in all processes."""

    pixels: np.ndarray
    tasks: Mapping[str, TaskRows]


def task_batch(
    step: int, settings: TaskSettings, tokenizer: Tokenizer, rank: int = 0, world_size: int = 1
) -> TaskBatch:
    """A process's rows of the batch of a step: the same for the same arguments, wherever it is
    drawn."""
    scenes = settings.scenes
    everywhere = scenes_of(step, replace(scenes, batch=scenes.batch * world_size))
    own = everywhere[rank * scenes.batch : (rank + 1) * scenes.batch]
    rng = random.Random(f"tasks {scenes.seed} {step} {rank}")
    return TaskBatch(
        pixels=np.stack([to_pixels(picture(scene), scenes.side) for scene in own]),
        tasks={
            task: task_rows(
                examples_of(own, task, count, rng, WORLDS[scenes.world]), task, settings, tokenizer
            )
            for task, count in settings.examples.items()
        },
    )


def examples_of(
    scenes: Sequence[Scene], task: str, count: int, rng: random.Random, world: World
) -> list[tuple[int, Example]]:
    """So many examples of a task of each scene, with the scene's number."""
    drawn = (
        (row, DRAWN[task](scene, rng, rng.choice(LANGUAGES), world))
        for row, scene in enumerate(scenes)
        for _ in range(count)
    )
    return [(row, example) for row, example in drawn if example is not None]


def task_rows(
    examples: Sequence[tuple[int, Example]],
    task: str,
    settings: TaskSettings,
    tokenizer: Tokenizer,
) -> TaskRows:
    """Examples of one task with their pictures' numbers -> ids."""
    prefixes = TargetIds(len(tokenizer), PREFIXES, 0)
    rows = [
        (
            prefixes.prefix(task, example.language),
            [*tokenizer.encode(normalise(example.target)), END][: settings.target],
        )
        for _, example in examples
    ]
    longest = max((len(target) for _, target in rows), default=1)
    inputs = np.full((len(rows), longest), PAD, dtype=np.int64)
    targets = np.full((len(rows), longest), UNKNOWN, dtype=np.int64)
    for row, (prefix, target) in enumerate(rows):
        inputs[row, : len(target)] = [prefix, *target[:-1]]
        targets[row, : len(target)] = target
    sources = [example.source for _, example in examples]
    return TaskRows(
        pictures=np.array([row for row, _ in examples], dtype=np.int64),
        sources=tokenizer.batch(sources, settings.scenes.context) if TASKS[task].source else None,
        inputs=inputs,
        targets=targets,
        examples=tuple(example for _, example in examples),
    )

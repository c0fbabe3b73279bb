"""Seed and step -> one batch for the decoder: pictures, and what to write of each by task.

Scenes are drawn as those of the other stages are (data.py), and none shows a withheld combination.
Each picture has the same number of examples of each task, or every so many pictures have one, in
either language; where a scene has none of a task, it has fewer. Sentiment draws pictures of its
own, half of which would be neutral otherwise.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.model.preprocess import to_pixels
from chiasm.pipeline.model.tasks import PREFIXES, TASKS, TargetIds
from chiasm.pipeline.model.tokenizer import END, PAD, Tokenizer, normalise
from chiasm.pipeline.scenes.draw import picture
from chiasm.pipeline.scenes.examples import Example, caption_example, imagine_example
from chiasm.pipeline.scenes.questions import EVENLY, question
from chiasm.pipeline.scenes.sentiment import FACE_POLARITIES, sentiment
from chiasm.pipeline.scenes.translation import translation
from chiasm.pipeline.scenes.vocabulary import LANGUAGES
from chiasm.pipeline.scenes.world import Scene, World, stream
from chiasm.pipeline.training.pocket.data import WORLDS, DataSettings, scenes_of
from chiasm.pipeline.training.pocket.targets import UNKNOWN


def _translate(scene: Scene, rng: random.Random, language: str, world: World) -> Example | None:
    source, target, ambiguous = translation(scene, rng, language, world)
    return Example("translate", language, source, target, "ambiguous" if ambiguous else "plain")


def _sentiment(rng: random.Random, language: str, world: World) -> tuple[Scene, Example]:
    scene, text, label = sentiment(rng, language, world)
    return scene, Example("sentiment", language, text, label, label)


Draw = Callable[[Scene, random.Random, str, World], Example | None]
# Task -> an example of it about a scene in a language, None where the scene has none.
DRAWN: Mapping[str, Draw] = {
    "caption": caption_example,
    "ask": lambda scene, rng, language, world: question(scene, rng, language, world=world),
    "translate": _translate,
    "imagine": imagine_example,
}
# How often a training asks questions of each type. "Is A left of B" compares the places of two
# things, and asked as often as the others it was learned last: 0.59 right where those were 0.97.
QUESTION_WEIGHTS = {**EVENLY, "is_related": 4.0}


def _trained_question(
    scene: Scene, rng: random.Random, language: str, world: World
) -> Example | None:
    return question(scene, rng, language, weights=QUESTION_WEIGHTS, world=world)


# As DRAWN, for training; what is measured is drawn evenly.
TRAINED = {**DRAWN, "ask": _trained_question}
# Task -> an example of it with a scene of its own.
DRAWN_WITH_SCENE: Mapping[str, Callable[[random.Random, str, World], tuple[Scene, Example]]] = {
    "sentiment": _sentiment,
}


@dataclass(frozen=True)
class TaskSettings:
    """scenes: how they are drawn, `batch` of them a step in each process. examples: of each
    picture, by task of DRAWN; of 0.25, every fourth picture has one. pictures: more of them a step
    in each process, by task of DRAWN_WITH_SCENE, with one example each. target: longest target in
    tokens, its end included; prefixes: those of the decoder. UsageError for a task that is in
    neither, and for one whose prefix the decoder lacks in a language: both languages are drawn.
    """

    scenes: DataSettings
    examples: Mapping[str, float]
    pictures: Mapping[str, int]
    target: int
    prefixes: tuple[str, ...] = PREFIXES

    def __post_init__(self) -> None:
        for name, tasks, drawn in (
            ("examples", self.examples, DRAWN),
            ("pictures", self.pictures, DRAWN_WITH_SCENE),
        ):
            for task, count in tasks.items():
                if task not in drawn:
                    raise UsageError(f"{name}: task {task!r}", expected=" or ".join(drawn))
                if not 0 < count < math.inf:
                    raise UsageError(
                        f"{name} of {task}", expected="a number above 0", found=str(count)
                    )
                missing = [item for item in TASKS[task].prefixes if item not in self.prefixes]
                if missing:
                    raise UsageError(
                        f"{name}: task {task!r}",
                        expected="a decoder that has its prefix in every language",
                        found="no " + ", no ".join(missing),
                        do=f"leave {task!r} out of {name}, or add them to decoder.prefixes",
                    )


@dataclass(frozen=True)
class TaskRows:
    """R examples of one task: pictures int64 (R,), the row of the picture of each; sources int64
    (R, S), PAD at the end, None where the task reads no text; inputs int64 (R, T), the prefix and
    the target without its end; targets int64 (R, T), the next id of each input, UNKNOWN after the
    end; examples: as they were drawn. Where the task writes codes of a picture, which only a model
    can say, T is 1 and targets are UNKNOWN.
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
    first, world = rank * scenes.batch, WORLDS[scenes.world]
    own = everywhere[first : first + scenes.batch]
    names = [str(first + row) for row in range(len(own))]  # of pictures, in all processes
    # Numbers of pictures, of all processes and all steps.
    end = step * world_size * (scenes.batch + sum(settings.pictures.values()))
    numbers = [*range(end + first, end + first + len(own))]
    end += scenes.batch * world_size
    drawn = {}
    for task, count in settings.pictures.items():
        more = [f"{task} {rank * count + row}" for row in range(count)]
        with_scenes = own_scenes(task, [f"{scenes.seed} {step} {name}" for name in more], world)
        drawn[task] = [(len(own) + row, example) for row, example in with_scenes[1]]
        own, names = own + with_scenes[0], names + more
        numbers += range(end + rank * count, end + (rank + 1) * count)
        end += count * world_size
    for task, share in settings.examples.items():
        seeds = [f"{task} {scenes.seed} {step} {name}" for name in names]
        counts = [math.floor((n + 1) * share) - math.floor(n * share) for n in numbers]
        drawn[task] = examples_of(own, task, counts, seeds, world, TRAINED)
    return TaskBatch(
        np.stack([to_pixels(picture(scene), scenes.side) for scene in own]),
        {task: task_rows(rows, task, settings, tokenizer) for task, rows in drawn.items()},
    )


def own_scenes(
    task: str, seeds: Sequence[str], world: World
) -> tuple[list[Scene], list[tuple[int, Example]]]:
    """A scene a seed, with an example of a task of DRAWN_WITH_SCENE and the scene's number."""
    rngs = [random.Random(seed) for seed in seeds]
    drawn = [DRAWN_WITH_SCENE[task](rng, rng.choice(LANGUAGES), world) for rng in rngs]
    return [scene for scene, _ in drawn], [(row, example) for row, (_, example) in enumerate(drawn)]


def examples_of(
    scenes: Sequence[Scene],
    task: str,
    counts: Sequence[int],
    seeds: Sequence[str],
    world: World,
    draw: Mapping[str, Draw] = DRAWN,
) -> list[tuple[int, Example]]:
    """Examples of a task of each scene, so many of each, each with its scene's number; one seed a
    scene."""
    drawn: list[tuple[int, Example]] = []
    for row, (scene, count, seed) in enumerate(zip(scenes, counts, seeds, strict=True)):
        rng = random.Random(seed)
        made = (draw[task](scene, rng, rng.choice(LANGUAGES), world) for _ in range(count))
        drawn += [(row, example) for example in made if example is not None]
    return drawn


def tasks_in(world: World, tasks: Iterable[str]) -> list[str]:
    """Those of the tasks that a world has examples of: sentiment needs faces of every mood."""
    moods = FACE_POLARITIES.keys() <= set(world.kinds)
    return [task for task in tasks if moods or task not in DRAWN_WITH_SCENE]


def task_texts(tasks: Iterable[str], samples: int, world: World) -> Iterator[str]:
    """What a tokenizer has to know beside captions: sources and targets of examples of the tasks,
    in each language as many as `samples`."""
    for task in tasks:
        rng, scenes = random.Random(f"tokenizer {task}"), stream(-1, world=world)
        for _ in range(samples):
            for language in LANGUAGES:
                if task in DRAWN:
                    example = DRAWN[task](next(scenes), rng, language, world)
                else:
                    _scene, example = DRAWN_WITH_SCENE[task](rng, language, world)
                yield from (example.source, example.target) if example else ()


def task_rows(
    examples: Sequence[tuple[int, Example]],
    task: str,
    settings: TaskSettings,
    tokenizer: Tokenizer,
) -> TaskRows:
    """Examples of one task with their pictures' numbers -> ids. UsageError for a target that is
    longer than `settings.target`."""
    prefixes = TargetIds(len(tokenizer), settings.prefixes, 0)
    ends = END if TASKS[task].head == "text" else UNKNOWN
    rows = [
        (
            prefixes.prefix(task, example.language),
            [*tokenizer.encode(normalise(example.target)), ends],
        )
        for _, example in examples
    ]
    too_long = [target for _, target in rows if len(target) > settings.target]
    if too_long:  # cut, a target would have no end, and the decoder would learn not to end it
        raise UsageError(
            f"target of {task} {tokenizer.decode(too_long[0])!r}",
            expected=f"at most {settings.target} tokens, which is decoder.context",
            found=str(len(too_long[0])),
            do="train with a larger decoder.context or a larger text.vocabulary",
        )
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

"""How often the decoder is right on scenes that no training draws, by task, language and type.

What it writes is compared with the facts: an answer and a label with the one that is right; a
caption is right where it is a sentence of the world's grammar that is true of the scene, a
translation where it is one that states what the right one states.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chiasm.pipeline.model.fusion import Modality
from chiasm.pipeline.model.generate import GenerateSettings, generate
from chiasm.pipeline.model.joint import JointNetwork
from chiasm.pipeline.model.preprocess import to_pixels
from chiasm.pipeline.model.tasks import TASKS, as_written
from chiasm.pipeline.model.tokenizer import END, Tokenizer
from chiasm.pipeline.scenes.draw import picture
from chiasm.pipeline.scenes.examples import Example
from chiasm.pipeline.scenes.parse import meaning, parse_caption
from chiasm.pipeline.scenes.questions import same_answer
from chiasm.pipeline.scenes.translation import is_rendering
from chiasm.pipeline.scenes.unseen import withheld_in
from chiasm.pipeline.scenes.world import Scene, World, gallery
from chiasm.pipeline.training.pocket.data import WORLDS
from chiasm.pipeline.training.pocket.settings import TrainSettings, task_settings
from chiasm.pipeline.training.pocket.task_data import (
    TaskRows,
    TaskSettings,
    examples_of,
    own_scenes,
    task_rows,
)

ROWS = 256  # examples that are written together
ONE_ANSWER = ("ask", "sentiment")  # tasks with one right target; others have many wordings of it
Figures = dict[str, float]


@dataclass(frozen=True)
class Examples:
    """Examples of one task, each with its scene's number, and the scenes."""

    task: str
    scenes: Sequence[Scene]
    examples: Sequence[tuple[int, Example]]


@dataclass(frozen=True)
class EncodedBlock:
    """R examples through the towers: image, of their pictures, each once; rows (R,) int64 of it;
    text, of their sources, None where the task has none; prefixes int64 (R,); steps: most tokens to
    write."""

    image: Modality
    rows: Tensor
    text: Modality | None
    prefixes: Tensor
    steps: int


def decoder_accuracy(
    model: JointNetwork, tokenizer: Tokenizer, settings: TrainSettings
) -> Callable[[JointNetwork], dict[str, Any]]:
    """-> a function of a model: by task the share that is right of one example of each scene of a
    fixed gallery, as a field of a record. Examples are drawn and go through the towers of `model`
    here, once: the models that are evaluated have the same towers."""
    tasks = task_settings(settings)
    drawn = draw_examples(tasks, settings.decoder_gallery, settings.gallery_seed)
    encoded = [list(encode_examples(model, tokenizer, tasks, of)) for of in drawn]
    world = WORLDS[tasks.scenes.world]

    def accuracy(later: JointNetwork) -> dict[str, Any]:
        found: dict[str, Figures] = {}
        for of, blocks in zip(drawn, encoded, strict=True):
            right = right_ones(write_texts(later, tokenizer, blocks), of, world)
            groups: dict[str, list[bool]] = defaultdict(list)
            for is_so, (_, example) in zip(right, of.examples, strict=True):
                for name in groups_of(example):
                    groups[name].append(is_so)
            found[of.task] = {k: round(sum(v) / len(v), 4) for k, v in sorted(groups.items())}
        return {"accuracy": found}

    return accuracy


def draw_examples(
    settings: TaskSettings, samples: int, seed: int, per_scene: int = 1
) -> list[Examples]:
    """Of every task `per_scene` examples of a scene, where it has them; of one that draws its own
    scenes, one. `samples` scenes, less those that show a withheld combination."""
    world = WORLDS[settings.scenes.world]
    scenes = [scene for scene in gallery(samples, seed, world) if not withheld_in(scene)]
    drawn, tasks = [], (*settings.examples, *settings.pictures)
    for task in (task for task in tasks if TASKS[task].head == "text"):
        seeds = [f"gallery {task} {seed} {row}" for row in range(len(scenes))]
        if task in settings.examples:
            counts = [per_scene] * len(scenes)
            drawn.append(Examples(task, scenes, examples_of(scenes, task, counts, seeds, world)))
        else:
            drawn.append(Examples(task, *own_scenes(task, seeds, world)))
    return drawn


def right_ones(texts: Sequence[str], of: Examples, world: World) -> list[bool]:
    """Which of the texts that were written for examples are right."""
    return [
        is_right(text, example, of.scenes[row], world)
        for text, (row, example) in zip(texts, of.examples, strict=True)
    ]


def is_right(written: str, example: Example, scene: Scene, world: World) -> bool:
    """Whether what was written for an example about a scene is right."""
    if example.task in ONE_ANSWER:
        return same_answer(written, example.target)
    text = as_written(written, example.language)
    if example.task == "caption":
        return is_rendering(text, scene, example.language, world)
    readings, wanted = (
        {meaning(claims) for claims in parse_caption(sentence, example.language, world)}
        for sentence in (text, example.target)
    )
    return not readings.isdisjoint(wanted)


def groups_of(example: Example) -> list[str]:
    """The groups that an example is counted in: all, its language, its type, and its type in its
    language."""
    kinds = [example.kind, f"{example.language} {example.kind}"] if example.kind else []
    return ["all", example.language, *kinds]


def encode_examples(
    model: JointNetwork, tokenizer: Tokenizer, settings: TaskSettings, of: Examples
) -> Iterator[EncodedBlock]:
    """Examples of one task, through the towers of a model in blocks of ROWS."""
    rows = task_rows(of.examples, of.task, settings, tokenizer)
    # Longer than the longest right answer is wrong, so such a text need not be written to its end.
    longest = settings.target - 1
    steps = min(longest, rows.targets.shape[1]) if of.task in ONE_ANSWER else longest
    for start in range(0, len(rows.inputs), ROWS):
        yield _encode(model, rows, slice(start, start + ROWS), of, settings.scenes.side, steps)


@torch.inference_mode()
def _encode(
    model: JointNetwork, rows: TaskRows, part: slice, of: Examples, side: int, steps: int
) -> EncodedBlock:
    device = model.log_scale.device
    numbers, at = np.unique(rows.pictures[part], return_inverse=True)
    pixels = np.stack([to_pixels(picture(of.scenes[number]), side) for number in numbers])
    text = None
    if rows.sources is not None:
        text = model.text_modality(torch.from_numpy(rows.sources[part]).to(device))
    return EncodedBlock(
        image=model.image_modality(torch.from_numpy(pixels).to(device)),
        rows=torch.from_numpy(at).to(device),
        text=text,
        prefixes=torch.from_numpy(rows.inputs[part, 0]).to(device),
        steps=steps,
    )


@torch.inference_mode()
def write_texts(
    model: JointNetwork, tokenizer: Tokenizer, blocks: Iterable[EncodedBlock]
) -> list[str]:
    """What the decoder of a model writes, greedily, for each example."""
    decoder = model.decoder
    assert decoder is not None
    texts: list[str] = []
    for block in blocks:
        state = decoder.start(None, block.image).take(block.rows)
        if block.text is not None:
            source = model.source(block.text, block.image.take(block.rows))
            state = decoder.with_text(state, source)
        settings = GenerateSettings(block.steps, END)
        found = generate(decoder.step("text"), block.prefixes, state, settings)
        texts += map(tokenizer.decode, found.tokens)
    return texts

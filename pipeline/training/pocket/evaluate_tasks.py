"""How often the decoder is right on a gallery that no training draws, by task, language and type.

What it writes is compared with the facts: an answer and a label with the one that is right; a
caption is right where it is a sentence of the world's grammar that is true of the scene, a
translation where it is one that states what the right one states.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from chiasm.pipeline.model.generate import GenerateSettings, generate
from chiasm.pipeline.model.joint import JointNetwork
from chiasm.pipeline.model.preprocess import to_pixels
from chiasm.pipeline.model.tasks import as_written
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


def accuracy_of_decoder(
    model: JointNetwork, tokenizer: Tokenizer, settings: TrainSettings
) -> dict[str, Any]:
    """`task_accuracy` of a model on the fixed gallery, as a field of a record."""
    tasks = task_settings(settings)
    found = task_accuracy(model, tokenizer, tasks, settings.gallery, settings.gallery_seed)
    return {"accuracy": found}


def task_accuracy(
    model: JointNetwork, tokenizer: Tokenizer, settings: TaskSettings, samples: int, seed: int
) -> dict[str, dict[str, float]]:
    """By task the share that is right, one example of each scene: of `all`, of each language and
    of each type, its key being `<language> <type>`. No scene shows a withheld combination."""
    world = WORLDS[settings.scenes.world]
    scenes = [scene for scene in gallery(samples, seed, world) if not withheld_in(scene)]
    found = {}
    for task in (*settings.examples, *settings.pictures):
        seeds = [f"gallery {task} {seed} {row}" for row in range(len(scenes))]
        if task in settings.examples:
            pictured, examples = scenes, examples_of(scenes, task, 1, seeds, world)
        else:
            pictured, examples = own_scenes(task, seeds, world)
        rows = task_rows(examples, task, settings, tokenizer)
        texts = write_texts(model, tokenizer, pixels_of(pictured, settings.scenes.side), rows)
        right: dict[str, list[bool]] = defaultdict(list)
        for text, (row, example) in zip(texts, examples, strict=True):
            for name in groups_of(example):
                right[name].append(is_right(text, example, pictured[row], world))
        found[task] = {name: round(sum(of) / len(of), 4) for name, of in sorted(right.items())}
    return found


def is_right(written: str, example: Example, scene: Scene, world: World) -> bool:
    """Whether what was written for an example about a scene is right."""
    if example.task in ("ask", "sentiment"):
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
    """The groups that an example is counted in."""
    kind = [f"{example.language} {example.kind}"] if example.kind else []
    return ["all", example.language, *kind]


def pixels_of(scenes: Sequence[Scene], side: int) -> np.ndarray:
    """uint8 (N, 3, S, S)."""
    return np.stack([to_pixels(picture(scene), side) for scene in scenes])


@torch.inference_mode()
def write_texts(
    model: JointNetwork, tokenizer: Tokenizer, pixels: np.ndarray, rows: TaskRows
) -> list[str]:
    """What the model writes, greedily, for the sources and prefixes of the rows of a task, whose
    pictures are rows of `pixels`."""
    decoder, device = model.decoder, model.log_scale.device
    assert decoder is not None
    texts: list[str] = []

    settings = GenerateSettings(decoder.config.context - 1, END)
    for start in range(0, len(rows.inputs), ROWS):
        part = slice(start, start + ROWS)
        pictures, at = np.unique(rows.pictures[part], return_inverse=True)
        image = model.image_modality(torch.from_numpy(pixels[pictures]).to(device))
        state = decoder.start(None, image).take(torch.from_numpy(at).to(device))
        if rows.sources is not None:
            sources = torch.from_numpy(rows.sources[part]).to(device)
            state = decoder.with_text(state, model.text_modality(sources))
        prefixes = torch.from_numpy(rows.inputs[part, 0]).to(device)
        texts += map(
            tokenizer.decode, generate(decoder.step("text"), prefixes, state, settings).tokens
        )
    return texts

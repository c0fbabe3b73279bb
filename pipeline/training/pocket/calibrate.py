"""What is set last: the bias of matching, and whether the fusion ships.

In training, matching is shown hard negatives of its batches, most of them easy; its users ask
whether a caption that is nearly right is right. So the bias b of matching.py is moved until the
logit is the log odds of a caption's own picture against one that differs by one change, both
equally likely: there the mean log loss over such pairs is least. The ranking does not change.

And what does not beat the best weighted mean does not ship: a joint vector that is not right more
often, by more than one standard error, becomes that mean.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence

import numpy as np

from chiasm.pipeline.model.inference import fuse_pairs, image_modality, text_modality
from chiasm.pipeline.model.joint import JointNetwork
from chiasm.pipeline.model.preprocess import to_pixels
from chiasm.pipeline.model.tokenizer import Tokenizer
from chiasm.pipeline.scenes.draw import picture
from chiasm.pipeline.scenes.unseen import withheld_in
from chiasm.pipeline.scenes.words import LANGUAGES, render_caption
from chiasm.pipeline.scenes.world import WORLD_1, Scene, World, stream
from chiasm.pipeline.training.logit_fits import fit_bias
from chiasm.pipeline.training.paired import wins_by_one_standard_error
from chiasm.pipeline.training.pocket.falsifying_changes import one_change
from chiasm.pipeline.training.pocket.joint_task import (
    JointTask,
    JointVectors,
    joint_task,
    right_hits,
)

# Galleries that decide whether the fusion ships: with 1,000 scenes in each, the standard error of a
# gain is some 0.6 points, a quarter of what a good fusion gains.
GALLERIES = 3
# Seeds that one training draws by: its batches from the first of them on, calibration by the last.
SEEDS = 10**9


def calibration_seed(seed: int) -> int:
    """The first of the GALLERIES seeds that the training of this seed calibrates by; the one after
    them is of the first step of another training."""
    return (seed + 1) * SEEDS - GALLERIES


def calibration_pairs(
    samples: int, seed: int, world: World = WORLD_1
) -> tuple[list[Scene], list[str], np.ndarray]:
    """2 x samples pairs: scenes as training draws them with complete captions in either language,
    and the same captions with scenes one change away; true (2 x samples,) bool."""
    rng = random.Random(f"calibrate {seed}")
    drawn = (scene for scene in stream(seed, world=world) if not withheld_in(scene))
    scenes: list[Scene] = []
    texts: list[str] = []
    for scene in itertools.islice(drawn, samples):
        _, claims, wrong = one_change(scene, rng, world)
        scenes += [scene, wrong]
        texts += [render_caption(claims, rng, rng.choice(LANGUAGES), world)] * 2
    return scenes, texts, np.arange(2 * samples) % 2 == 0


def calibration_bias(
    match: Callable[[Sequence[np.ndarray], Sequence[str], np.ndarray], np.ndarray],
    preprocess: Callable[[Scene], np.ndarray],
    samples: int,
    seed: int,
    world: World = WORLD_1,
) -> float:
    """What to add to b. match: pixels, texts, pairs (P, 2) of their indices -> logits (P,)."""
    scenes, texts, true = calibration_pairs(samples, seed, world)
    pairs = np.arange(len(texts))[:, None].repeat(2, axis=1)
    logits = match([preprocess(scene) for scene in scenes], texts, pairs)
    return fit_bias(logits.astype(np.float64), true)


def joint_galleries(
    model: JointNetwork, tokenizer: Tokenizer, samples: int, seed: int, world: World
) -> list[tuple[JointTask, JointVectors]]:
    """GALLERIES galleries of so many scenes of a world as training draws them, all in twin
    groups, by as many seeds from this one on."""
    tasks = (_training_task(samples, seed + n, world) for n in range(GALLERIES))
    return [(task, _vectors(model, tokenizer, task)) for task in tasks]


def wins(galleries: Sequence[tuple[JointTask, JointVectors]], text_weight: float) -> bool:
    """Does the joint vector answer more queries right by the first hit than the mean with this
    weight of the text, by more than one standard error?"""
    ours, theirs = [], []
    for task, vectors in galleries:
        ours.append(right_hits(vectors.queries, vectors.joint, task.true)[:, 0])
        theirs.append(right_hits(vectors.queries, vectors.mean(text_weight), task.true)[:, 0])
    right, rows = np.concatenate(ours), np.arange(sum(map(len, ours)))  # one query a picture
    return wins_by_one_standard_error(right, np.concatenate(theirs), rows)


def _training_task(samples: int, seed: int, world: World) -> JointTask:
    drawn = (scene for scene in stream(seed, twins=1.0, world=world) if not withheld_in(scene))
    scenes = list(itertools.islice(drawn, samples))
    return joint_task(scenes, random.Random(f"joint {seed}"), world)


def _vectors(model: JointNetwork, tokenizer: Tokenizer, task: JointTask) -> JointVectors:
    side = model.config.image.side
    image = image_modality(model, [to_pixels(picture(scene), side) for scene in task.scenes])
    text = text_modality(model, tokenizer, task.captions)
    return JointVectors(
        image=image.vector.float().cpu().numpy(),
        text=text.vector.float().cpu().numpy(),
        joint=fuse_pairs(model, text, image),
        queries=text_modality(model, tokenizer, task.queries).vector.float().cpu().numpy(),
    )

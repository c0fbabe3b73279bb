"""Calibration of matching: its bias is set last.

In training, matching is shown hard negatives of its batches, most of them easy; its users ask
whether a caption that is nearly right is right. So the bias b of matching.py is moved until the
logit is the log odds of a caption's own picture against one that differs by one change, both
equally likely: there the mean log loss over such pairs is least. The ranking does not change.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence

import numpy as np

from chiasm.pipeline.scenes.unseen import withheld_in
from chiasm.pipeline.scenes.words import LANGUAGES, render_caption
from chiasm.pipeline.scenes.world import WORLD_1, Scene, World, stream
from chiasm.pipeline.training.logit_fits import fit_bias
from chiasm.pipeline.training.pocket.falsifying_changes import one_change


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

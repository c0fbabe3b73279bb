"""Where matching says yes: its one free number, set when all else has been learned.

Training shows matching wrong pairs as they are found in batches, easy ones among them; what people
ask is whether a text that is nearly right is right. So the benefit b of the doubt (matching.py) is
moved until the log odds are those of a caption's own picture against one that differs by one
change, both as likely: the mean of log-loss over such pairs is least there. Ranking is unchanged.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence

import numpy as np
import torch

from chiasm.pipeline.scenes.unseen import withheld_in
from chiasm.pipeline.scenes.words import LANGUAGES, tell
from chiasm.pipeline.scenes.world import Scene, stream
from chiasm.pipeline.training.pocket.perturb import one_change

ROUNDS = 50
LARGEST_STEP = 2.0


def nearly_right(samples: int, seed: int) -> tuple[list[Scene], list[str], np.ndarray]:
    """2 x samples pairs: scenes as training draws them with complete captions in either language,
    and the same captions with scenes one change away; true (2 x samples,) bool."""
    rng = random.Random(f"calibrate {seed}")
    drawn = (scene for scene in stream(seed) if not withheld_in(scene))
    scenes: list[Scene] = []
    texts: list[str] = []
    for scene in itertools.islice(drawn, samples):
        _, claims, wrong = one_change(scene, rng)
        scenes += [scene, wrong]
        texts += [tell(claims, rng, rng.choice(LANGUAGES))] * 2
    return scenes, texts, np.arange(2 * samples) % 2 == 0


def fit_bias(
    match: Callable[[Sequence[np.ndarray], Sequence[str], np.ndarray], np.ndarray],
    preprocess: Callable[[Scene], np.ndarray],
    samples: int,
    seed: int,
) -> float:
    """What to add to b. match: pixels, texts, pairs (P, 2) of their indices -> logits (P,)."""
    scenes, texts, true = nearly_right(samples, seed)
    pairs = np.arange(len(texts))[:, None].repeat(2, axis=1)
    logits = match([preprocess(scene) for scene in scenes], texts, pairs)
    return shift(torch.from_numpy(logits).double(), torch.from_numpy(true))


def shift(logits: torch.Tensor, true: torch.Tensor) -> float:
    """The d for which the mean log-loss of logits + d is least: logits (N,) float64, true (N,)
    bool, some of each. By Newton's method, in steps of at most LARGEST_STEP."""
    moved = torch.zeros((), dtype=torch.float64)
    for _ in range(ROUNDS):
        p = torch.sigmoid(logits + moved)
        slope, curve = (p - true.double()).mean(), (p * (1 - p)).mean()
        change = float((slope / curve.clamp(min=1e-12)).clamp(-LARGEST_STEP, LARGEST_STEP))
        moved = moved - change
        if abs(change) < 1e-9:
            break
    return float(moved)

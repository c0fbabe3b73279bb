"""Seed and step -> one batch of the picture-book world, drawn and told on the spot.

A batch is a function of the seed and the step alone, so that a training that was killed goes on
with the very batches it would have seen. Workers are processes of their own: drawing takes about a
tenth of the processor time of the training itself.
"""

from __future__ import annotations

import itertools
import multiprocessing
import random
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np

from chiasm.pipeline.model.preprocess import to_pixels
from chiasm.pipeline.model.tokenizer import Tokenizer, train
from chiasm.pipeline.scenes.claims import holds_matrix
from chiasm.pipeline.scenes.draw import picture
from chiasm.pipeline.scenes.hard import hard_group
from chiasm.pipeline.scenes.unseen import withheld_in
from chiasm.pipeline.scenes.words import LANGUAGES, plan, tell
from chiasm.pipeline.scenes.world import (
    BACKGROUNDS,
    Scene,
    stream,
)
from chiasm.pipeline.training.pocket.targets import (
    bag_shown,
    bag_told,
    facts_of,
    kinds_shown,
    kinds_told,
    relations_told,
)

AHEAD = 2  # batches made in advance by each worker


NEIGHBOURS = (3, 4, 5)  # of a scene in a group of hard twins: groups of 4 to 24 scenes
CAPTIONS = 2  # of each picture in a batch


@dataclass(frozen=True)
class DataSettings:
    """What batches are made of.

    side: S, pixels. context: longest text in tokens. hard: the chance of a group of hard twins
    before each other scene, see `chiasm.pipeline.scenes.hard`; 0.08 makes some four tenths of a
    batch. twins: share of scenes in twin groups among the others. partial: share of captions that
    leave things unsaid.
    """

    seed: int = 0
    batch: int = 128
    side: int = 72
    context: int = 64
    hard: float = 0.08
    twins: float = 0.6
    partial: float = 0.3


@dataclass(frozen=True)
class CaptionTargets:
    """One caption for each picture of a batch, in whatever language: ids int64 (B, T); also_true
    (B, B) bool, caption i is true of picture j; kinds int64 (B, 20, 6), what it says of each kind,
    see `kinds_told`; lies int64 (B, 20, 2), how it has each kind lie to another, see
    `relations_told`; bag int64 (B, 44), which of WORDS it says.
    """

    ids: np.ndarray
    also_true: np.ndarray
    kinds: np.ndarray
    lies: np.ndarray
    bag: np.ndarray


@dataclass(frozen=True)
class TrainBatch:
    """One batch: pixels uint8 (B, 3, S, S); told, two captions of each, of independent language and
    wording; facts int64 (B, 9, 4), what lies in each place, -1 for nothing to tell; background
    int64 (B,); kinds int64 (B, 20, 6), what the picture says of each kind, see `kinds_shown`; bag
    int64 (B, 44), which of WORDS are true of it.
    """

    pixels: np.ndarray
    told: tuple[CaptionTargets, ...]
    facts: np.ndarray
    background: np.ndarray
    kinds: np.ndarray
    bag: np.ndarray


def train_batch(step: int, settings: DataSettings, tokenizer: Tokenizer) -> TrainBatch:
    """The batch of a step: the same for the same step, settings and tokenizer, in any process."""
    scenes = scenes_of(step, settings)
    rng = random.Random(f"captions {settings.seed} {step}")
    return TrainBatch(
        pixels=np.stack([to_pixels(picture(scene), settings.side) for scene in scenes]),
        told=tuple(_told(scenes, rng, settings, tokenizer) for _ in range(CAPTIONS)),
        facts=np.stack([facts_of(scene) for scene in scenes]),
        background=np.array([BACKGROUNDS.index(scene.background) for scene in scenes]),
        kinds=np.stack([kinds_shown(scene) for scene in scenes]),
        bag=np.stack([bag_shown(scene) for scene in scenes]),
    )


def _told(
    scenes: Sequence[Scene], rng: random.Random, settings: DataSettings, tokenizer: Tokenizer
) -> CaptionTargets:
    claims = [plan(scene, rng, complete=rng.random() >= settings.partial) for scene in scenes]
    texts = [tell(claim, rng, rng.choice(LANGUAGES)) for claim in claims]
    return CaptionTargets(
        ids=tokenizer.batch(texts, settings.context),
        also_true=holds_matrix(claims, scenes),
        kinds=np.stack([kinds_told(c, scene) for c, scene in zip(claims, scenes, strict=True)]),
        lies=np.stack([relations_told(claim) for claim in claims]),
        bag=np.stack([bag_told(c, scene) for c, scene in zip(claims, scenes, strict=True)]),
    )


def scenes_of(step: int, settings: DataSettings) -> list[Scene]:
    """The scenes of a step's batch; none shows a combination of `chiasm.pipeline.scenes.unseen`."""
    allowed = (scene for scene in _scenes(step, settings) if not withheld_in(scene))
    return list(itertools.islice(allowed, settings.batch))


def _scenes(step: int, settings: DataSettings) -> Iterator[Scene]:
    seed = _seed(settings.seed, step)
    rng = random.Random(f"hard {seed}")
    for scene in stream(seed, settings.twins):
        if rng.random() < settings.hard:
            yield from hard_group(rng, rng.choice(NEIGHBOURS))
        yield scene


def train_batches(
    first: int, last: int, settings: DataSettings, tokenizer: Tokenizer, workers: int
) -> Generator[TrainBatch, None, None]:
    """The batches of steps `first` to `last` - 1 in order, made ahead by worker processes (0:
    here).
    """
    if not workers:
        for step in range(first, last):
            yield train_batch(step, settings, tokenizer)
        return
    # Spawned, not forked: a fork of a process with torch's threads may hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context)
    try:
        waiting: deque[Future[TrainBatch]] = deque()
        for step in range(first, last):
            waiting.append(pool.submit(train_batch, step, settings, tokenizer))
            if len(waiting) > workers * AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _seed(seed: int, step: int) -> int:
    """One stream a step; seeds of different trainings do not meet within a billion steps."""
    return seed * 10**9 + step


def learn_tokenizer(vocabulary: int, samples: int = 6000) -> Tokenizer:
    """A tokenizer learned from captions of the world, as many complete as partial, in all
    languages.
    """
    rng = random.Random("tokenizer")
    scenes = itertools.islice(stream(-1), samples)
    claims = [plan(scene, rng, complete=rng.random() < 0.5) for scene in scenes]
    return train((tell(c, rng, language) for c in claims for language in LANGUAGES), vocabulary)

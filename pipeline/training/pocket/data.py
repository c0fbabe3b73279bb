"""Seed and step -> one batch of the picture-book world, drawn and captioned on the spot.

A batch is a function of the seed and the step alone, so that a training that was killed goes on
with the very batches it would have seen. Processes that train together share one batch: each of
them knows the facts and the captions of all its scenes, which cost little, and draws the pictures
of its own rows. Workers are processes of their own: drawing takes about a tenth of the processor
time of the training itself.
"""

from __future__ import annotations

import itertools
import multiprocessing
import random
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from chiasm.pipeline.model.preprocess import to_pixels
from chiasm.pipeline.model.tokenizer import Tokenizer, train
from chiasm.pipeline.scenes.claims import Claims, holds_matrix
from chiasm.pipeline.scenes.draw import picture
from chiasm.pipeline.scenes.hard_twins import hard_group
from chiasm.pipeline.scenes.unseen import withheld_in
from chiasm.pipeline.scenes.words import LANGUAGES, plan, render_caption
from chiasm.pipeline.scenes.world import WORLD_1, WORLD_2, Scene, World, stream
from chiasm.pipeline.training.pocket.targets import (
    caption_kinds,
    caption_relations,
    caption_words,
    scene_attributes,
    scene_kinds,
    scene_words,
)

AHEAD = 2  # batches made in advance by each worker
NEIGHBOURS = (3, 4, 5)  # of a scene in a group of hard twins: groups of 4 to 24 scenes
CAPTIONS = 2  # of each picture in a batch
WORLDS = {world.name: world for world in (WORLD_1, WORLD_2)}
Drawn = TypeVar("Drawn")


@dataclass(frozen=True)
class DataSettings:
    """What batches are made of.

    batch: pictures of a step, in each process. side: S, pixels. context: longest text in tokens.
    hard: the chance of a group of hard twins before each other scene, see
    `chiasm.pipeline.scenes.hard_twins`; 0.08 makes some four tenths of a batch. twins: share of
    scenes in twin groups among the others. partial: share of captions that omit facts. world: a key
    of WORLDS. other_world: another, of which `world` has all values, that every second step draws
    from and takes its words from; "": none.
    """

    seed: int = 0
    batch: int = 128
    side: int = 72
    context: int = 64
    hard: float = 0.08
    twins: float = 0.6
    partial: float = 0.3
    world: str = WORLD_1.name
    other_world: str = ""


@dataclass(frozen=True)
class CaptionTargets:
    """One caption for each of a process's B pictures, in either language, A being the pictures of
    all processes, K kinds and W words of the world.

    ids int64 (B, T); also_true (B, A) bool, caption i is true of picture j of all; others_true
    (A, B) bool, caption i of all is true of picture j; kinds int64 (B, K, 6), see `caption_kinds`;
    relations int64 (B, K, 2), see `caption_relations`; bag int64 (B, W), see `caption_words`.
    """

    ids: np.ndarray
    also_true: np.ndarray
    others_true: np.ndarray
    kinds: np.ndarray
    relations: np.ndarray
    bag: np.ndarray


@dataclass(frozen=True)
class TrainBatch:
    """A process's rows of a batch: pixels uint8 (B, 3, S, S); captions, two of each picture, of
    independent language and wording; places int64 (B, 9, 4), see `scene_attributes`; background
    int64 (B,); kinds int64 (B, K, 6), see `scene_kinds`; bag int64 (B, W), see `scene_words`;
    first: the number of the first row among those of all processes.
    """

    pixels: np.ndarray
    captions: tuple[CaptionTargets, ...]
    places: np.ndarray
    background: np.ndarray
    kinds: np.ndarray
    bag: np.ndarray
    first: int


def train_batch(
    step: int, settings: DataSettings, tokenizer: Tokenizer, rank: int = 0, world_size: int = 1
) -> TrainBatch:
    """A process's rows of the batch of a step: the same for the same arguments, wherever it is
    drawn. All processes together have the rows that one alone has of a batch as large."""
    everywhere = scenes_of(step, replace(settings, batch=settings.batch * world_size))
    rng = random.Random(f"captions {settings.seed} {step}")
    own = slice(rank * settings.batch, (rank + 1) * settings.batch)
    captions = tuple(
        _targets(step, everywhere, own, rng, settings, tokenizer) for _ in range(CAPTIONS)
    )
    scenes, world = everywhere[own], WORLDS[settings.world]
    backgrounds = [world.backgrounds.index(scene.background) for scene in scenes]
    return TrainBatch(
        pixels=np.stack([to_pixels(picture(scene), settings.side) for scene in scenes]),
        captions=captions,
        places=np.stack([scene_attributes(scene, world) for scene in scenes]),
        background=np.array(backgrounds),
        kinds=np.stack([scene_kinds(scene, world) for scene in scenes]),
        bag=np.stack([scene_words(scene, world) for scene in scenes]),
        first=own.start,
    )


def _targets(
    step: int,
    everywhere: Sequence[Scene],
    own: slice,
    rng: random.Random,
    settings: DataSettings,
    tokenizer: Tokenizer,
) -> CaptionTargets:
    """Of a caption for each scene of all processes, those of the process's own scenes. Which are
    true of others is asked of their words: an ambiguous one is true of either sense."""
    world, words = WORLDS[settings.world], _world_of(step, settings)
    claims: list[Claims] = [
        plan(scene, rng, complete=rng.random() >= settings.partial) for scene in everywhere
    ]
    languages, texts = [], []
    for claim in claims:
        languages.append(rng.choice(LANGUAGES))
        texts.append(render_caption(claim, rng, languages[-1], words))
    also_true = holds_matrix(claims[own], everywhere, languages[own])
    alone = len(claims[own]) == len(claims)
    rows = list(zip(claims[own], everywhere[own], languages[own], strict=True))
    return CaptionTargets(
        ids=tokenizer.batch(texts[own], settings.context),
        also_true=also_true,
        others_true=also_true if alone else holds_matrix(claims, everywhere[own], languages),
        kinds=np.stack([caption_kinds(c, scene, world, language) for c, scene, language in rows]),
        relations=np.stack([caption_relations(c, world, language) for c, _, language in rows]),
        bag=np.stack([caption_words(c, scene, world, language) for c, scene, language in rows]),
    )


def scenes_of(step: int, settings: DataSettings) -> list[Scene]:
    """The scenes of a step's batch; none shows a combination of `chiasm.pipeline.scenes.unseen`."""
    allowed = (scene for scene in _scenes(step, settings) if not withheld_in(scene))
    return list(itertools.islice(allowed, settings.batch))


def _scenes(step: int, settings: DataSettings) -> Iterator[Scene]:
    seed = _seed(settings.seed, step)
    rng = random.Random(f"hard {seed}")
    world = _world_of(step, settings)
    for scene in stream(seed, settings.twins, world):
        if rng.random() < settings.hard:
            yield from hard_group(rng, rng.choice(NEIGHBOURS), world)
        yield scene


def _world_of(step: int, settings: DataSettings) -> World:
    """The world that a step draws from."""
    return WORLDS[settings.other_world if settings.other_world and step % 2 else settings.world]


def map_steps(
    draw: Callable[[int], Drawn], steps: range, workers: int
) -> Generator[Drawn, None, None]:
    """`draw` of each step, in order, made ahead by worker processes (0: here)."""
    if not workers:
        yield from map(draw, steps)
        return
    # Spawned, not forked: a fork of a process with torch's threads may hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context)
    try:
        waiting: deque[Future[Drawn]] = deque()
        for step in steps:
            waiting.append(pool.submit(draw, step))
            if len(waiting) > workers * AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _seed(seed: int, step: int) -> int:
    """One stream a step; seeds of different trainings do not overlap within a billion steps."""
    return seed * 10**9 + step


def learn_tokenizer(
    vocabulary: int, samples: int = 6000, world: World = WORLD_1, more: Iterable[str] = ()
) -> Tokenizer:
    """A tokenizer learned from captions of a world in all languages, half of them complete, and
    from `more` texts."""
    rng = random.Random("tokenizer")
    scenes = itertools.islice(stream(-1, world=world), samples)
    claims = [plan(scene, rng, complete=rng.random() < 0.5) for scene in scenes]
    texts = (render_caption(c, rng, language, world) for c in claims for language in LANGUAGES)
    return train(itertools.chain(texts, more), vocabulary)

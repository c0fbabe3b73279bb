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
from chiasm.pipeline.scenes.claims import CLAIM_VALUES, OPPOSITE, RELATIONS, Claims, holds_matrix
from chiasm.pipeline.scenes.draw import picture
from chiasm.pipeline.scenes.hard import hard_group
from chiasm.pipeline.scenes.unseen import withheld_in
from chiasm.pipeline.scenes.words import LANGUAGES, plan, tell
from chiasm.pipeline.scenes.world import (
    BACKGROUNDS,
    COLOURS,
    KINDS,
    PLACES,
    SIZES,
    TEXTURES,
    Scene,
    stream,
)

AHEAD = 2  # batches made in advance by each worker
# Classes of each attribute that the facts loss asks of a place; the last kind is "nothing here".
CLASSES = (len(KINDS) + 1, len(COLOURS), len(SIZES), len(TEXTURES))
# Classes of what a vector is asked of each kind: is it there, colour, size, texture, row, column.
READINGS = (2, len(COLOURS), len(SIZES), len(TEXTURES), 3, 3)
UNKNOWN = -1
WORDS = (*KINDS, *COLOURS, *SIZES, *TEXTURES, *BACKGROUNDS)


NEIGHBOURS = (3, 4, 5)  # of a scene in a group of hard twins: groups of 4 to 24 scenes
CAPTIONS = 2  # of each picture in a batch


@dataclass(frozen=True)
class FeedSettings:
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
class Told:
    """One caption for each picture of a batch, in whatever language: ids int64 (B, T); also_true
    (B, B) bool, caption i is true of picture j; kinds int64 (B, 20, 6), what it says of each kind,
    see `kinds_told`; lies int64 (B, 20, 2), how it has each kind lie to another, see `lies_told`;
    bag int64 (B, 44), which of WORDS it says.
    """

    ids: np.ndarray
    also_true: np.ndarray
    kinds: np.ndarray
    lies: np.ndarray
    bag: np.ndarray


@dataclass(frozen=True)
class Lesson:
    """One batch: pixels uint8 (B, 3, S, S); told, two captions of each, of independent language and
    wording; facts int64 (B, 9, 4), what lies in each place, -1 for nothing to tell; background
    int64 (B,); kinds int64 (B, 20, 6), what the picture says of each kind, see `kinds_shown`; bag
    int64 (B, 44), which of WORDS are true of it.
    """

    pixels: np.ndarray
    told: tuple[Told, ...]
    facts: np.ndarray
    background: np.ndarray
    kinds: np.ndarray
    bag: np.ndarray


def lesson(step: int, settings: FeedSettings, tokenizer: Tokenizer) -> Lesson:
    """The batch of a step: the same for the same step, settings and tokenizer, in any process."""
    scenes = scenes_of(step, settings)
    rng = random.Random(f"captions {settings.seed} {step}")
    return Lesson(
        pixels=np.stack([to_pixels(picture(scene), settings.side) for scene in scenes]),
        told=tuple(_told(scenes, rng, settings, tokenizer) for _ in range(CAPTIONS)),
        facts=np.stack([facts_of(scene) for scene in scenes]),
        background=np.array([BACKGROUNDS.index(scene.background) for scene in scenes]),
        kinds=np.stack([kinds_shown(scene) for scene in scenes]),
        bag=np.stack([bag_shown(scene) for scene in scenes]),
    )


def _told(
    scenes: Sequence[Scene], rng: random.Random, settings: FeedSettings, tokenizer: Tokenizer
) -> Told:
    claims = [plan(scene, rng, complete=rng.random() >= settings.partial) for scene in scenes]
    texts = [tell(claim, rng, rng.choice(LANGUAGES)) for claim in claims]
    return Told(
        ids=tokenizer.batch(texts, settings.context),
        also_true=holds_matrix(claims, scenes),
        kinds=np.stack([kinds_told(c, scene) for c, scene in zip(claims, scenes, strict=True)]),
        lies=np.stack([lies_told(claim) for claim in claims]),
        bag=np.stack([bag_told(c, scene) for c, scene in zip(claims, scenes, strict=True)]),
    )


def scenes_of(step: int, settings: FeedSettings) -> list[Scene]:
    """The scenes of a step's batch; none shows a combination of `chiasm.pipeline.scenes.unseen`."""
    allowed = (scene for scene in _scenes(step, settings) if not withheld_in(scene))
    return list(itertools.islice(allowed, settings.batch))


def _scenes(step: int, settings: FeedSettings) -> Iterator[Scene]:
    seed = _seed(settings.seed, step)
    rng = random.Random(f"hard {seed}")
    for scene in stream(seed, settings.twins):
        if rng.random() < settings.hard:
            yield from hard_group(rng, rng.choice(NEIGHBOURS))
        yield scene


def lessons(
    first: int, last: int, settings: FeedSettings, tokenizer: Tokenizer, workers: int
) -> Generator[Lesson, None, None]:
    """The batches of steps `first` to `last` - 1 in order, made ahead by worker processes (0:
    here).
    """
    if not workers:
        for step in range(first, last):
            yield lesson(step, settings, tokenizer)
        return
    # Spawned, not forked: a fork of a process with torch's threads may hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context)
    try:
        waiting: deque[Future[Lesson]] = deque()
        for step in range(first, last):
            waiting.append(pool.submit(lesson, step, settings, tokenizer))
            if len(waiting) > workers * AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def facts_of(scene: Scene) -> np.ndarray:
    """What lies in each of the 9 places: (9, 4) int64 of kind, colour, size, texture."""
    facts = np.full((len(PLACES), len(CLASSES)), -1, dtype=np.int64)
    facts[:, 0] = len(KINDS)
    for thing in scene.things:
        facts[PLACES.index(thing.place)] = (
            KINDS.index(thing.kind),
            COLOURS.index(thing.colour),
            SIZES.index(thing.size),
            TEXTURES.index(thing.texture),
        )
    return facts


def kinds_shown(scene: Scene) -> np.ndarray:
    """What a picture says of each kind: (20, 6) int64 of is it there (0 or 1), its colour, size,
    texture, row and column, -1 for what there is nothing to say of.
    """
    shown = np.full((len(KINDS), len(READINGS)), UNKNOWN, dtype=np.int64)
    shown[:, 0] = 0
    for thing in scene.things:
        shown[KINDS.index(thing.kind)] = (
            1,
            COLOURS.index(thing.colour),
            SIZES.index(thing.size),
            TEXTURES.index(thing.texture),
            thing.row,
            thing.column,
        )
    return shown


def kinds_told(claims: Claims, scene: Scene) -> np.ndarray:
    """What a caption of the scene says of each kind, as `kinds_shown`; a thing of the scene that it
    leaves out is unknown, not absent.
    """
    told = np.full((len(KINDS), len(READINGS)), UNKNOWN, dtype=np.int64)
    told[:, 0] = np.where(kinds_shown(scene)[:, 0] == 1, UNKNOWN, 0)
    for claim in claims.things:
        if claim.kind is None:
            continue
        told[KINDS.index(claim.kind), 0] = 1
        for column, (name, values) in enumerate(list(CLAIM_VALUES.items())[1:], 1):
            if (value := getattr(claim, name)) is not None:
                told[KINDS.index(claim.kind), column] = values.index(value)
    return told


def lies_told(claims: Claims) -> np.ndarray:
    """How a caption has each kind lie to another: (20, 2) int64 of the relation, a position in
    RELATIONS, and the other kind; -1 for kinds that it relates to none.
    """
    told = np.full((len(KINDS), 2), UNKNOWN, dtype=np.int64)
    for i, relation, j in claims.relations:
        for one, lies, other in ((i, relation, j), (j, OPPOSITE[relation], i)):
            kinds = claims.things[one].kind, claims.things[other].kind
            if None not in kinds:
                told[KINDS.index(kinds[0])] = RELATIONS.index(lies), KINDS.index(kinds[1])
    return told


def bag_shown(scene: Scene) -> np.ndarray:
    """Which of WORDS are true of a picture, in no order and bound to nothing: (44,) int64 of 0,
    1.
    """
    said = {scene.background}
    for thing in scene.things:
        said |= {thing.kind, thing.colour, thing.size, thing.texture}
    return np.array([word in said for word in WORDS], dtype=np.int64)


def bag_told(claims: Claims, scene: Scene) -> np.ndarray:
    """Which of WORDS a caption of the scene says: as `bag_shown`, UNKNOWN for what is true but
    unsaid.
    """
    said = {claims.background}
    for claim in claims.things:
        said |= {claim.kind, claim.colour, claim.size, claim.texture}
    told = np.array([word in said for word in WORDS], dtype=np.int64)
    return np.where((told == 0) & (bag_shown(scene) == 1), UNKNOWN, told)


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

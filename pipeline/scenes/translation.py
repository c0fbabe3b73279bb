"""Sentences to translate with the help of a picture: English -> Chinese and Chinese -> English.

The sentence is a caption of the scene. Where a word of it has two senses (a crane is 鹤 or 起重机;
钟 is a clock or a bell), nothing but the picture says which is meant, and the translation has
another word for each. A right translation is any sentence of the world's grammar that makes the
source's claims.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from chiasm.pipeline.scenes.claims import Claims, holds
from chiasm.pipeline.scenes.parse import meaning, parse_caption
from chiasm.pipeline.scenes.unseen import withheld_in
from chiasm.pipeline.scenes.vocabulary import homonyms
from chiasm.pipeline.scenes.words import plan, render_caption
from chiasm.pipeline.scenes.world import WORLD_2, Scene, World, edited, options, random_scene

SOURCE_LANGUAGES = {"en": "zh", "zh": "en"}  # by the language of the translation
COMPLETE = 0.5  # share of sentences that state all there is; the others are shorter


@dataclass(frozen=True, slots=True)
class AmbiguousPair:
    """Two scenes that differ in the sense of one word, one sentence that is true of both, and its
    translation for each scene: `claims` are what each translation states, `kinds` the two senses.
    """

    source: str
    scenes: tuple[Scene, Scene]
    targets: tuple[str, str]
    claims: tuple[Claims, Claims]
    kinds: tuple[str, str]


def translation(
    scene: Scene, rng: random.Random, target_language: str, world: World = WORLD_2
) -> tuple[str, str, str | None]:
    """(a sentence about the scene in the other language, its translation, the first kind in it
    whose word is ambiguous in the sentence's language or None). KeyError for another language.
    """
    source_language = SOURCE_LANGUAGES[target_language]
    claims = plan(scene, rng, complete=rng.random() < COMPLETE)
    source = render_caption(claims, rng, source_language, world)
    target = render_caption(claims, rng, target_language, world)
    ambiguous = homonyms(source_language, world)
    kinds = (claim.kind for claim in claims.things)
    return source, target, next((kind for kind in kinds if kind in ambiguous), None)


def ambiguous_pair(
    rng: random.Random, target_language: str, world: World = WORLD_2
) -> AmbiguousPair:
    """A sentence with an ambiguous word, and two scenes that settle it in two ways: which sense is
    first is drawn, and the words of the two translations differ in that sense alone where both
    senses have as many wordings. Neither scene shows a withheld combination. KeyError for another
    language; ValueError for a world without ambiguous words.
    """
    source_language = SOURCE_LANGUAGES[target_language]
    ambiguous = homonyms(source_language, world)
    if not ambiguous:
        raise ValueError(f"{world.name}: expected a world with ambiguous words, found none")
    kind = rng.choice(list(ambiguous))
    other = rng.choice([sense for sense in ambiguous[kind] if sense != kind])
    while True:
        scenes = _scenes(rng, (kind, other), world)
        claims = plan(scenes[0], rng, complete=rng.random() < COMPLETE)
        if not any(map(withheld_in, scenes)) and any(c.kind == kind for c in claims.things):
            break
    renamed = tuple(replace(c, kind=other) if c.kind == kind else c for c in claims.things)
    both = (claims, replace(claims, things=renamed))
    source, seed = render_caption(claims, rng, source_language, world), rng.random()
    first, second = (render_caption(c, random.Random(seed), target_language, world) for c in both)
    return AmbiguousPair(source, scenes, (first, second), both, (kind, other))


def _scenes(rng: random.Random, kinds: tuple[str, str], world: World) -> tuple[Scene, Scene]:
    """A random scene in which one thing is of the first kind, and again of the second."""
    while True:
        scene = random_scene(rng, world)
        attribute = (rng.randrange(len(scene.things)), "kind")
        if kinds[0] in options(scene, attribute, world):
            first, second = (edited(scene, attribute, kind) for kind in kinds)
            return first, second


def is_rendering(text: str, truth: Claims | Scene, language: str, world: World = WORLD_2) -> bool:
    """Whether a text is a sentence of the world's grammar, in any of its wordings, that states
    these claims, no more and no less, in any order; of a scene: that is true of it. Some 0.2 ms.
    """
    readings = parse_caption(text, language, world)
    if isinstance(truth, Scene):
        return any(holds(reading, truth) for reading in readings)
    return meaning(truth) in map(meaning, readings)

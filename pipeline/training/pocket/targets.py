"""Targets of the probes, of a scene and of its captions: class numbers and bags of words.

Sizes depend on the world that is trained; K are its kinds. World 2 has the values of world 1 first,
so that the numbers of one are those of the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chiasm.pipeline.scenes.claims import (
    CLAIM_VALUES,
    COLUMNS,
    OPPOSITE,
    RELATIONS,
    ROWS,
    Claims,
    ThingClaim,
)
from chiasm.pipeline.scenes.vocabulary import homonyms
from chiasm.pipeline.scenes.world import PLACES, WORLD_1, Scene, Thing, World

UNKNOWN = -1  # no target: ignored by the losses


def place_classes(world: World) -> tuple[int, ...]:
    """Classes of each attribute of a place: kind, the last of them "nothing here", colour, size,
    texture."""
    return (len(world.kinds) + 1, len(world.colours), len(world.sizes), len(world.textures))


def reading_classes(world: World) -> tuple[int, ...]:
    """Classes of each target of a kind: is it present, colour, size, texture, row, column."""
    return (2, *place_classes(world)[1:], len(ROWS), len(COLUMNS))


def words_of(world: World) -> tuple[str, ...]:
    """The words of a bag: kinds, colours, sizes, textures and backgrounds."""
    return (*world.kinds, *world.colours, *world.sizes, *world.textures, *world.backgrounds)


def scene_attributes(scene: Scene, world: World = WORLD_1) -> np.ndarray:
    """Of each of the 9 places (9, 4) int64: kind, colour, size, texture; -1 where it is empty."""
    facts = np.full((len(PLACES), len(place_classes(world))), UNKNOWN, dtype=np.int64)
    facts[:, 0] = len(world.kinds)
    for thing in scene.things:
        facts[PLACES.index(thing.place)] = world.kinds.index(thing.kind), *_values(thing, world)
    return facts


def scene_kinds(scene: Scene, world: World = WORLD_1) -> np.ndarray:
    """Of each kind in a scene (K, 6) int64: present (0 or 1), colour, size, texture, row, column;
    UNKNOWN for the attributes of absent kinds.
    """
    targets = np.full((len(world.kinds), len(reading_classes(world))), UNKNOWN, dtype=np.int64)
    targets[:, 0] = 0
    for thing in scene.things:
        row = world.kinds.index(thing.kind)
        targets[row] = (1, *_values(thing, world), thing.row, thing.column)
    return targets


def caption_kinds(
    claims: Claims, scene: Scene, world: World = WORLD_1, language: str | None = None
) -> np.ndarray:
    """What a caption of the scene states of each kind, as `scene_kinds`; a thing of the scene that
    it omits is UNKNOWN, not absent; so are, with a language, all kinds that a word of it may mean
    where it may mean several.
    """
    targets = np.full((len(world.kinds), len(reading_classes(world))), UNKNOWN, dtype=np.int64)
    targets[:, 0] = np.where(scene_kinds(scene, world)[:, 0] == 1, UNKNOWN, 0)
    for claim in claims.things:
        if claim.kind is None:
            continue
        senses = _senses(claim, world, language)
        if len(senses) > 1:
            targets[[world.kinds.index(kind) for kind in senses], 0] = UNKNOWN
            continue
        row = world.kinds.index(claim.kind)
        targets[row, 0] = 1
        for column, (name, values) in enumerate(list(CLAIM_VALUES.items())[1:], 1):
            if (value := getattr(claim, name)) is not None:
                targets[row, column] = values.index(value)
    return targets


def caption_relations(
    claims: Claims, world: World = WORLD_1, language: str | None = None
) -> np.ndarray:
    """Spatial relations that a caption states, of each kind (K, 2) int64: the relation, an index
    into RELATIONS, and the other kind; UNKNOWN for kinds without one, and where a word of the
    language may mean several kinds.
    """
    targets = np.full((len(world.kinds), 2), UNKNOWN, dtype=np.int64)
    for i, relation, j in claims.relations:
        for one, name, other in ((i, relation, j), (j, OPPOSITE[relation], i)):
            things = claims.things[one], claims.things[other]
            if all(len(_senses(thing, world, language)) == 1 for thing in things):
                kinds = [world.kinds.index(thing.kind or "") for thing in things]
                targets[kinds[0]] = RELATIONS.index(name), kinds[1]
    return targets


def scene_words(scene: Scene, world: World = WORLD_1) -> np.ndarray:
    """Bag of words of a scene: which of `words_of` are true of it, (W,) int64 of 0 and 1."""
    words: set[str | None] = {scene.background}
    for thing in scene.things:
        words |= {thing.kind, thing.colour, thing.size, thing.texture}
    return _bag(words, world)


def caption_words(
    claims: Claims, scene: Scene, world: World = WORLD_1, language: str | None = None
) -> np.ndarray:
    """Bag of words of a caption of the scene, as `scene_words`; UNKNOWN for what is true of the
    scene but not stated, and, with a language, for kinds that a word of it may mean where it may
    mean several.
    """
    words: set[str | None] = {claims.background}
    unclear: set[str | None] = set()
    for claim in claims.things:
        words |= {claim.kind, claim.colour, claim.size, claim.texture}
        senses = _senses(claim, world, language)
        if len(senses) > 1:
            unclear |= set(senses)
    stated = _bag(words, world)
    unknown = ((stated == 0) & (scene_words(scene, world) == 1)) | (_bag(unclear, world) == 1)
    return np.where(unknown, UNKNOWN, stated)


def _values(thing: Thing, world: World) -> tuple[int, ...]:
    """Colour, size and texture of a thing."""
    return (
        world.colours.index(thing.colour),
        world.sizes.index(thing.size),
        world.textures.index(thing.texture),
    )


def _senses(claim: ThingClaim, world: World, language: str | None) -> Sequence[str]:
    """The kinds that the claim's word may mean: none where it names no kind."""
    if claim.kind is None:
        return ()
    return homonyms(language, world).get(claim.kind, (claim.kind,)) if language else (claim.kind,)


def _bag(words: set[str | None], world: World) -> np.ndarray:
    return np.array([word in words for word in words_of(world)], dtype=np.int64)

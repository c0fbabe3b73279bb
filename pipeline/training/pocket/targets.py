"""Targets of the probes, of a scene and of its captions: class numbers and bags of words."""

from __future__ import annotations

import numpy as np

from chiasm.pipeline.scenes.claims import CLAIM_VALUES, OPPOSITE, RELATIONS, Claims
from chiasm.pipeline.scenes.world import (
    BACKGROUNDS,
    COLOURS,
    KINDS,
    PLACES,
    SIZES,
    TEXTURES,
    Scene,
)

# Classes of each attribute of a place; the last kind is "nothing here".
CLASSES = (len(KINDS) + 1, len(COLOURS), len(SIZES), len(TEXTURES))
# Classes of each target of a kind: is it present, colour, size, texture, row, column.
READINGS = (2, len(COLOURS), len(SIZES), len(TEXTURES), 3, 3)
UNKNOWN = -1  # no target: ignored by the losses
WORDS = (*KINDS, *COLOURS, *SIZES, *TEXTURES, *BACKGROUNDS)


def scene_attributes(scene: Scene) -> np.ndarray:
    """Of each of the 9 places (9, 4) int64: kind, colour, size, texture; -1 where it is empty."""
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


def scene_kinds(scene: Scene) -> np.ndarray:
    """Of each kind in a scene (20, 6) int64: present (0 or 1), colour, size, texture, row, column;
    UNKNOWN for the attributes of absent kinds.
    """
    targets = np.full((len(KINDS), len(READINGS)), UNKNOWN, dtype=np.int64)
    targets[:, 0] = 0
    for thing in scene.things:
        targets[KINDS.index(thing.kind)] = (
            1,
            COLOURS.index(thing.colour),
            SIZES.index(thing.size),
            TEXTURES.index(thing.texture),
            thing.row,
            thing.column,
        )
    return targets


def caption_kinds(claims: Claims, scene: Scene) -> np.ndarray:
    """What a caption of the scene states of each kind, as `scene_kinds`; a thing of the scene that
    it omits is UNKNOWN, not absent.
    """
    targets = np.full((len(KINDS), len(READINGS)), UNKNOWN, dtype=np.int64)
    targets[:, 0] = np.where(scene_kinds(scene)[:, 0] == 1, UNKNOWN, 0)
    for claim in claims.things:
        if claim.kind is None:
            continue
        targets[KINDS.index(claim.kind), 0] = 1
        for column, (name, values) in enumerate(list(CLAIM_VALUES.items())[1:], 1):
            if (value := getattr(claim, name)) is not None:
                targets[KINDS.index(claim.kind), column] = values.index(value)
    return targets


def caption_relations(claims: Claims) -> np.ndarray:
    """Spatial relations that a caption states, of each kind (20, 2) int64: the relation, an index
    into RELATIONS, and the other kind; UNKNOWN for kinds without one.
    """
    targets = np.full((len(KINDS), 2), UNKNOWN, dtype=np.int64)
    for i, relation, j in claims.relations:
        for one, name, other in ((i, relation, j), (j, OPPOSITE[relation], i)):
            kinds = claims.things[one].kind, claims.things[other].kind
            if None not in kinds:
                targets[KINDS.index(kinds[0])] = RELATIONS.index(name), KINDS.index(kinds[1])
    return targets


def scene_words(scene: Scene) -> np.ndarray:
    """Bag of words of a scene: which of WORDS are true of it, (44,) int64 of 0 and 1."""
    words = {scene.background}
    for thing in scene.things:
        words |= {thing.kind, thing.colour, thing.size, thing.texture}
    return np.array([word in words for word in WORDS], dtype=np.int64)


def caption_words(claims: Claims, scene: Scene) -> np.ndarray:
    """Bag of words of a caption of the scene, as `scene_words`; UNKNOWN for what is true of the
    scene but not stated.
    """
    words = {claims.background}
    for claim in claims.things:
        words |= {claim.kind, claim.colour, claim.size, claim.texture}
    stated = np.array([word in words for word in WORDS], dtype=np.int64)
    return np.where((stated == 0) & (scene_words(scene) == 1), UNKNOWN, stated)

"""What probes are asked to predict of a scene and of its captions, as class numbers and bags of
words."""

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

# Classes of each attribute that the facts loss asks of a place; the last kind is "nothing here".
CLASSES = (len(KINDS) + 1, len(COLOURS), len(SIZES), len(TEXTURES))


# Classes of what a vector is asked of each kind: is it there, colour, size, texture, row, column.
READINGS = (2, len(COLOURS), len(SIZES), len(TEXTURES), 3, 3)


UNKNOWN = -1


WORDS = (*KINDS, *COLOURS, *SIZES, *TEXTURES, *BACKGROUNDS)


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


def relations_told(claims: Claims) -> np.ndarray:
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

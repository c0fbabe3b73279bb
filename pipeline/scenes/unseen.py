"""The compositional split: combinations that training never draws, of parts that it draws often.

A combination is a colour, a kind and a relation: a red boat left of something. One in twenty is
withheld: of every kind, two pairs of a colour and a relation, so that every colour, kind and
relation, and every two of them, are met in training, but not the three together. A scene in which a
withheld combination is true is never drawn for training, so no training caption states it; nor is
it drawn for any other task: no question, translation, remark or drawing of training shows one.
One rule serves both worlds, so that world 2 withholds all that world 1 does.
"""

from __future__ import annotations

import hashlib
import random
from functools import lru_cache

from chiasm.pipeline.scenes.claims import RELATIONS, Claims, related
from chiasm.pipeline.scenes.words import plan
from chiasm.pipeline.scenes.world import (
    COLOURS,
    KINDS,
    WORLD_1,
    Scene,
    World,
    random_scene,
    twin_group,
)

Relation = tuple[int, str, int]  # thing i of a scene, a relation, thing j


RESIDUES, RESIDUE = 20, 7  # one combination in RESIDUES; a constant, whatever kinds there are


def withheld(colour: str, kind: str, relation: str) -> bool:
    """Whether this combination is never drawn for training."""
    code = 2 * COLOURS.index(colour) + _offset(kind) + 5 * RELATIONS.index(relation)
    return code % RESIDUES == RESIDUE


@lru_cache(maxsize=256)
def _offset(kind: str) -> int:
    """0 to 19: of a kind of world 1 its position, of another a hash of its name, so that a kind
    keeps what is withheld of it when others join.
    """
    if kind in KINDS:
        return KINDS.index(kind)
    return int.from_bytes(hashlib.sha256(kind.encode()).digest()[:4], "big") % RESIDUES


def withheld_in(scene: Scene) -> list[Relation]:
    """Where withheld combinations are true in a scene."""
    return [
        (i, relation, j)
        for i, one in enumerate(scene.things)
        for j, other in enumerate(scene.things)
        for relation in RELATIONS
        if i != j and related(one, relation, other) and withheld(one.colour, one.kind, relation)
    ]


def unseen_gallery(
    samples: int, seed: int, world: World = WORLD_1
) -> tuple[list[Scene], list[Claims]]:
    """At least `samples` different scenes, each with three others or more that differ from it in
    one attribute, and for each a complete caption's claims. Every group grew from a scene with a
    withheld combination, and where a scene has one its caption states it: those are the
    queries, the other scenes are distractors.
    """
    rng = random.Random(f"unseen gallery {seed}")
    scenes: list[Scene] = []
    seen: set[object] = set()
    while len(scenes) < samples:
        base = random_scene(rng, world)
        if not withheld_in(base):
            continue
        group = twin_group(rng, scene=base, world=world)
        if len(group) > 3 and seen.isdisjoint(scene.facts for scene in group):
            seen.update(scene.facts for scene in group)
            scenes.extend(group)
    rng.shuffle(scenes)
    return scenes, [_claims_of(scene, rng) for scene in scenes]


def _claims_of(scene: Scene, rng: random.Random) -> Claims:
    relations = withheld_in(scene)
    return plan(scene, rng, relation=rng.choice(relations) if relations else None)

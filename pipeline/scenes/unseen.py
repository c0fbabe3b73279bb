"""The compositional split: combinations that training never draws, of parts that it draws often.

A combination is a colour, a kind and a relation: a red boat left of something. One in twenty is
withheld: for every colour and relation exactly one kind, so that every colour, kind and relation,
and every two of them, are met in training, but not the three together. A scene in which a
withheld combination is true is never drawn for training, so no training caption states it.
"""

from __future__ import annotations

import random

from chiasm.pipeline.scenes.claims import RELATIONS, Claims, related
from chiasm.pipeline.scenes.words import plan
from chiasm.pipeline.scenes.world import COLOURS, KINDS, Scene, random_scene, twin_group

Relation = tuple[int, str, int]  # thing i of a scene, a relation, thing j


def withheld(colour: str, kind: str, relation: str) -> bool:
    """Whether this combination is never drawn for training."""
    code = 2 * COLOURS.index(colour) + KINDS.index(kind) + 5 * RELATIONS.index(relation)
    return code % len(KINDS) == 7


def withheld_in(scene: Scene) -> list[Relation]:
    """Where withheld combinations are true in a scene."""
    return [
        (i, relation, j)
        for i, one in enumerate(scene.things)
        for j, other in enumerate(scene.things)
        for relation in RELATIONS
        if i != j and related(one, relation, other) and withheld(one.colour, one.kind, relation)
    ]


def unseen_gallery(samples: int, seed: int) -> tuple[list[Scene], list[Claims]]:
    """At least `samples` different scenes, each with three others or more that differ from it in
    one attribute, and for each a complete caption's claims. Every group grew from a scene with a
    withheld combination, and where a scene has one its caption states it: those are the
    queries, the other scenes are distractors.
    """
    rng = random.Random(f"unseen gallery {seed}")
    scenes: list[Scene] = []
    seen: set[object] = set()
    while len(scenes) < samples:
        base = random_scene(rng)
        if not withheld_in(base):
            continue
        group = twin_group(rng, scene=base)
        if len(group) > 3 and seen.isdisjoint(scene.facts for scene in group):
            seen.update(scene.facts for scene in group)
            scenes.extend(group)
    rng.shuffle(scenes)
    return scenes, [_claims_of(scene, rng) for scene in scenes]


def _claims_of(scene: Scene, rng: random.Random) -> Claims:
    relations = withheld_in(scene)
    return plan(scene, rng, relation=rng.choice(relations) if relations else None)

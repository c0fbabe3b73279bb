"""Hard twins: groups of scenes that differ in one attribute, in the number of things, or in the
spatial relation of two of them.

A group is the product of a few changes: whether two things have changed places, whether one of them
is missing, and the values of one or two attributes. Every scene has a given number of neighbours,
scenes that are one change away. A caption of the poorer of two scenes that differ in a thing
is true of the richer one too; all else that a complete caption says is false of a neighbour, places
excepted that a relation covers.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from chiasm.pipeline.scenes.world import (
    WORLD_1,
    Attribute,
    Scene,
    World,
    attributes,
    edited,
    new_style_seed,
    options,
    random_scene,
)

NEIGHBOURS = 9
Change = Callable[[Scene], Scene]


def hard_gallery(
    samples: int, seed: int, neighbours: int = NEIGHBOURS, world: World = WORLD_1
) -> list[Scene]:
    """At least `samples` different scenes in random order, in whole groups: each has `neighbours`
    others one change away. The same seed gives the same gallery.
    """
    rng = random.Random(f"hard gallery {seed}")
    scenes: list[Scene] = []
    seen: set[object] = set()
    while len(scenes) < samples:
        group = hard_group(rng, neighbours, world)
        if seen.isdisjoint(scene.facts for scene in group):
            seen.update(scene.facts for scene in group)
            scenes.extend(group)
    rng.shuffle(scenes)
    return scenes


def hard_group(
    rng: random.Random, neighbours: int = NEIGHBOURS, world: World = WORLD_1
) -> list[Scene]:
    """Scenes of one group, each with exactly `neighbours` (2 or more) others one change away."""
    while True:
        scene = random_scene(rng, world)
        changes = _changes(scene, rng, neighbours, world)
        if changes is not None:
            break
    group = []
    for combination in itertools.product(*changes):
        twin = scene
        for change in combination:
            twin = change(twin)
        group.append(replace(twin, style_seed=new_style_seed(rng)))
    return group


def swapped(scene: Scene, i: int = 0, j: int = 1) -> Scene:
    """The scene with the places of things i and j exchanged."""
    things = list(scene.things)
    things[i] = replace(scene.things[i], place=scene.things[j].place)
    things[j] = replace(scene.things[j], place=scene.things[i].place)
    return replace(scene, things=tuple(things))


def without_last(scene: Scene) -> Scene:
    """The scene with its last thing taken away; it needs to have two."""
    return replace(scene, things=scene.things[:-1])


def _changes(
    scene: Scene, rng: random.Random, neighbours: int, world: World
) -> list[Sequence[Change]] | None:
    """Factors whose product is a group; None where this scene cannot give one."""
    factors: list[Sequence[Change]] = []
    varied = attributes(scene)
    count = len(scene.things)
    both = count == 3 and rng.random() < 0.5
    fewer = both or (count == 2 and rng.random() < 0.5)
    if both or (count == 2 and not fewer):
        factors.append((_same, swapped))
        varied = [attribute for attribute in varied if attribute[1] != "place"]
    if fewer:
        factors.append((_same, without_last))
        varied = [attribute for attribute in varied if attribute[0] != count - 1]
    left = neighbours - len(factors)
    first = left if rng.random() < 0.5 or left < 2 else rng.randrange(1, left)
    rng.shuffle(varied)
    for wanted in filter(None, (first, left - first)):
        values = _values(scene, varied, wanted, rng, world)
        if values is None:
            return None
        factors.append(values)
    return factors


def _values(
    scene: Scene, varied: list[Attribute], wanted: int, rng: random.Random, world: World
) -> Sequence[Change] | None:
    """The changes of one attribute to `wanted` other values and to none; takes it off `varied`."""
    for attribute in varied:
        present, *others = options(scene, attribute, world)
        if len(others) >= wanted:
            # Two things moving, or two becoming another kind, could end as the same.
            varied[:] = [a for a in varied if a[1] != attribute[1]]
            return [_set(attribute, v) for v in (present, *rng.sample(others, wanted))]
    return None


def _set(attribute: Attribute, value: str) -> Change:
    return lambda scene: edited(scene, attribute, value)


def _same(scene: Scene) -> Scene:
    return scene

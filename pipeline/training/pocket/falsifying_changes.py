"""One change to a scene that makes a caption of it false: a value, the number of things, or how two
of them lie.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from chiasm.pipeline.scenes.claims import Claims, holds
from chiasm.pipeline.scenes.hard_twins import swapped, without_last
from chiasm.pipeline.scenes.words import LANGUAGES, plan
from chiasm.pipeline.scenes.world import WORLD_1, Scene, World, attributes, edited, options

Change = Callable[[Scene, random.Random, World], Scene | None]


def one_change(
    scene: Scene, rng: random.Random, world: World = WORLD_1
) -> tuple[str, Claims, Scene]:
    """What is changed, a complete caption's claims, and a scene one change away of which they are
    false in the words of any language; half of the changes are of a value."""
    while True:
        claims = plan(scene, rng)
        name = rng.choice(["value", *CHANGES])
        changed = CHANGES[name](scene, rng, world)
        if changed is not None and not any(
            holds(claims, changed, language) for language in LANGUAGES
        ):
            return name, claims, changed


def _other_value(scene: Scene, rng: random.Random, world: World) -> Scene | None:
    attribute = rng.choice(attributes(scene))
    return edited(scene, attribute, rng.choice(options(scene, attribute, world)[1:]))


def _swap(scene: Scene, rng: random.Random, world: World) -> Scene | None:
    return swapped(scene) if len(scene.things) > 1 else None


def _fewer(scene: Scene, rng: random.Random, world: World) -> Scene | None:
    return without_last(scene) if len(scene.things) > 1 else None


CHANGES: dict[str, Change] = {"value": _other_value, "swap": _swap, "fewer": _fewer}

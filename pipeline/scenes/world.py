"""The facts of the picture-book world: a seed goes in, scenes come out.

A scene is one to three things on a background; a thing has a kind, a colour, a size, a texture and
a place of its own on a grid of three by three. Facts come first: pictures (draw.py) and captions
(words.py) are both made from them, so that what is true of a picture is known. `style_seed` seeds
what no caption mentions (small shifts and tilts) and is no attribute.

Galleries are made of twin groups: each scene has at least three others that differ from it in
exactly one attribute: a model that encodes only the gist of a picture cannot tell them apart.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

KINDS = (
    "circle", "square", "triangle", "star", "heart", "moon", "tree", "house", "boat", "fish",
    "flower", "face", "car", "cup", "mushroom", "umbrella", "balloon", "butterfly", "cat", "apple",
)  # fmt: skip
COLOURS = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "white", "black",
)  # fmt: skip
SIZES = ("small", "big")
TEXTURES = ("plain", "striped", "spotted", "checked")
PLACES = (
    "top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom",
    "bottom right",
)  # fmt: skip
BACKGROUNDS = ("meadow", "beach", "sea", "night", "snow", "desert", "room", "sunset")

VALUES = {"kind": KINDS, "colour": COLOURS, "size": SIZES, "texture": TEXTURES, "place": PLACES}
MOST_THINGS = 3
# How often a scene has one, two, three things: two show relations best, three are the hardest.
COUNT_WEIGHTS = (3, 5, 2)
# Values per varied attribute: in each group a scene has sum(n - 1) >= 3 twins.
GROUP_SHAPES = ((4,), (4,), (3, 2), (2, 2, 2))
TWINS = 3


@dataclass(frozen=True, slots=True)
class Thing:
    """One thing of a scene; each field is one of VALUES."""

    kind: str
    colour: str
    size: str
    texture: str
    place: str

    @property
    def row(self) -> int:
        """0 at the top, 1, 2 at the bottom."""
        return PLACES.index(self.place) // 3

    @property
    def column(self) -> int:
        """0 at the left, 1, 2 at the right."""
        return PLACES.index(self.place) % 3


@dataclass(frozen=True, slots=True)
class Scene:
    """1 to 3 things in different places and of different kinds, a background, a style seed."""

    things: tuple[Thing, ...]
    background: str
    style_seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """The facts as plain values, ready for json."""
        things = [asdict(thing) for thing in self.things]
        return {"things": things, "background": self.background, "look": self.style_seed}

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> Scene:
        """The scene of a `to_json`; other fields are ignored. ValueError for invalid facts."""
        try:
            things = tuple(Thing(**thing) for thing in facts["things"])
            scene = cls(things, facts["background"], facts["look"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"not the facts of a scene: {error}") from error
        for thing in things:
            for name, values in VALUES.items():
                if getattr(thing, name) not in values:
                    raise ValueError(f"{name} {getattr(thing, name)!r}: expected one of {values}")
        if scene.background not in BACKGROUNDS:
            raise ValueError(f"background {scene.background!r}: expected one of {BACKGROUNDS}")
        if not 1 <= len(things) <= MOST_THINGS or not isinstance(scene.style_seed, int):
            raise ValueError(f"expected 1 to {MOST_THINGS} things and a whole number as look")
        return scene

    @property
    def facts(self) -> tuple[Any, ...]:
        """What makes two scenes the same: everything but the style seed, things in any order."""
        return (self.background, frozenset(self.things))


# An attribute of a scene: (None, "background"), or (index of the thing, name of its field).
Attribute = tuple[int | None, str]


def attributes(scene: Scene) -> list[Attribute]:
    """All attributes of a scene: the background's, then five of each thing."""
    of_things = itertools.product(range(len(scene.things)), VALUES)
    return [(None, "background"), *of_things]


def options(scene: Scene, attribute: Attribute) -> list[str]:
    """The values an attribute can take, the present one first: no second thing of one kind or
    place.
    """
    index, name = attribute
    if index is None:
        return [scene.background, *(b for b in BACKGROUNDS if b != scene.background)]
    taken = {getattr(t, name) for t in scene.things} if name in ("kind", "place") else set()
    present = getattr(scene.things[index], name)
    return [present, *(v for v in VALUES[name] if v != present and v not in taken)]


def edited(scene: Scene, attribute: Attribute, value: str, style_seed: int | None = None) -> Scene:
    """The scene with one attribute changed to `value`, and a new style seed where one is given."""
    index, name = attribute
    style_seed = scene.style_seed if style_seed is None else style_seed
    if index is None:
        return replace(scene, background=value, style_seed=style_seed)
    things = list(scene.things)
    things[index] = replace(things[index], **{name: value})
    return replace(scene, things=tuple(things), style_seed=style_seed)


def random_scene(rng: random.Random) -> Scene:
    """One scene, each attribute drawn evenly."""
    count = rng.choices(range(1, MOST_THINGS + 1), COUNT_WEIGHTS)[0]
    kinds, places = rng.sample(KINDS, count), rng.sample(PLACES, count)
    things = tuple(
        Thing(kind, rng.choice(COLOURS), rng.choice(SIZES), rng.choice(TEXTURES), place)
        for kind, place in zip(kinds, places, strict=True)
    )
    return Scene(things, rng.choice(BACKGROUNDS), new_style_seed(rng))


def twin_group(
    rng: random.Random, shape: tuple[int, ...] | None = None, scene: Scene | None = None
) -> list[Scene]:
    """Scenes that share all but a few attributes: the product of `shape[i]` values of attribute i.

    In a group of shape (4,) each scene has 3 twins (scenes that differ in exactly that attribute),
    in (3, 2) it has 2 + 1, in (2, 2, 2) it has 3 x 1. None: one of GROUP_SHAPES. scene: the one
    that is varied, None for a random one.
    """
    shape = shape or rng.choice(GROUP_SHAPES)
    scene = scene or random_scene(rng)
    varied: list[tuple[Attribute, list[str]]] = []
    candidates = rng.sample(attributes(scene), len(attributes(scene)))
    for wanted in shape:
        for attribute in candidates:
            values = options(scene, attribute)
            # Two things moving in one group could end in one place, two changing kind as one kind.
            clash = attribute[1] in ("kind", "place") and any(
                attribute[1] == a[1] for a, _ in varied
            )
            if len(values) >= wanted and not clash:
                varied.append((attribute, [values[0], *rng.sample(values[1:], wanted - 1)]))
                candidates.remove(attribute)
                break
    group = []
    for values in itertools.product(*(values for _, values in varied)):
        twin = scene
        for (attribute, _), value in zip(varied, values, strict=True):
            twin = edited(twin, attribute, value, new_style_seed(rng))
        group.append(twin)
    return group


def gallery(samples: int, seed: int) -> list[Scene]:
    """`samples` different scenes in random order, each with at least 3 others one attribute away.

    The same seed gives the same gallery. ValueError below 4 samples: three twins need a fourth.
    """
    if samples <= TWINS:
        raise ValueError(f"a gallery of {samples} scenes: expected at least {TWINS + 1}")
    rng = random.Random(f"gallery {seed}")
    scenes: list[Scene] = []
    seen: set[tuple[Any, ...]] = set()
    while (left := samples - len(scenes)) > 0:
        # Whole groups only: near the end one attribute takes as many values as scenes are left.
        shape = (left,) if left < 2 * (TWINS + 1) else None
        group = twin_group(rng, shape)
        room = left - len(group)
        if len(group) < TWINS + 1 or 0 < room <= TWINS or room < 0:
            continue
        if seen.isdisjoint(scene.facts for scene in group):
            seen.update(scene.facts for scene in group)
            scenes.extend(group)
    rng.shuffle(scenes)
    return scenes


def stream(seed: int, twins: float = 0.6) -> Iterator[Scene]:
    """Scenes without end for training: about `twins` of them in twin groups, the rest on their
    own.
    """
    rng = random.Random(f"stream {seed}")
    mean_group = 5.5
    alone = (1 - twins) * mean_group / (twins + (1 - twins) * mean_group) if twins else 1.0
    while True:
        if rng.random() < alone:
            yield random_scene(rng)
        else:
            yield from twin_group(rng)


def new_style_seed(rng: random.Random) -> int:
    """A style seed for a scene."""
    return rng.randrange(2**31)

"""The facts of the picture-book world: a seed goes in, scenes come out.

A scene is one to three things on a background; a thing has a kind, a colour, a size, a texture and
a place of its own on a grid of three by three. Facts come first: pictures (draw.py) and captions
(words.py) are both made from them, so that what is true of a picture is known. `style_seed` seeds
what no caption mentions (small shifts and tilts) and is no attribute.

Galleries are made of twin groups: each scene has at least three others that differ from it in
exactly one attribute: a model that encodes only the gist of a picture cannot tell them apart.

There are two worlds. All figures of old were measured in WORLD_1, which stays as it is; WORLD_2 has
its values first and in the same order, then kinds whose word is ambiguous in one language, faces
with other moods, and backgrounds with a mood.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
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


@dataclass(frozen=True)
class World:
    """What scenes are drawn from: the values of each attribute.

    families: kinds of which a scene has one at most, since two of them share a word in one
    language, or are faces: "the crane" means one thing of a scene.
    """

    name: str
    kinds: tuple[str, ...] = KINDS
    backgrounds: tuple[str, ...] = BACKGROUNDS
    colours: tuple[str, ...] = COLOURS
    sizes: tuple[str, ...] = SIZES
    textures: tuple[str, ...] = TEXTURES
    places: tuple[str, ...] = PLACES
    families: tuple[tuple[str, ...], ...] = ()

    @cached_property
    def values(self) -> dict[str, tuple[str, ...]]:
        """The values of each field of a `Thing`."""
        return {
            "kind": self.kinds, "colour": self.colours, "size": self.sizes,
            "texture": self.textures, "place": self.places,
        }  # fmt: skip

    @cached_property
    def family_of(self) -> dict[str, str]:
        """Kind -> the first kind of its family, itself where it has none."""
        of_families = {kind: family[0] for family in self.families for kind in family}
        return {kind: of_families.get(kind, kind) for kind in self.kinds}

    def compatible(self, kinds: Sequence[str]) -> bool:
        """Whether things of these kinds may be in one scene: no two of one family."""
        return len({self.family_of[kind] for kind in kinds}) == len(kinds)


# The two senses of a word of English, then of a word of Chinese: words are in vocabulary.py.
SENSES = (
    ("crane bird", "crane machine"), ("bat animal", "bat club"), ("bow ribbon", "bow weapon"),
    ("nail finger", "nail metal"), ("mouse animal", "mouse computer"),
    ("palm hand", "palm tree"), ("letter mail", "letter character"),
    ("clock", "bell"), ("sheep", "goat"), ("tower", "pagoda"),
)  # fmt: skip
FACES = ("face", "crying face", "calm face")  # the first smiles
WORLD_1 = World("world 1")
WORLD_2 = World(
    "world 2",
    kinds=(*KINDS, *itertools.chain(*SENSES), *FACES[1:]),
    backgrounds=(*BACKGROUNDS, "rainbow", "fair", "storm", "dead forest"),
    families=(*SENSES, FACES),
)
VALUES = WORLD_1.values
MOST_THINGS = 3
# How often a scene has one, two, three things: two show relations best, three are the hardest.
COUNT_WEIGHTS = (3, 5, 2)
# Values per varied attribute: in each group a scene has sum(n - 1) >= 3 twins.
GROUP_SHAPES = ((4,), (4,), (3, 2), (2, 2, 2))
TWINS = 3


@dataclass(frozen=True, slots=True)
class Thing:
    """One thing of a scene; each field is one of its world's `values`."""

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
        """The scene of a `to_json`, of either world; other fields are ignored. ValueError for
        invalid facts.
        """
        try:
            things = tuple(Thing(**thing) for thing in facts["things"])
            scene = cls(things, facts["background"], facts["look"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"not the facts of a scene: {error}") from error
        for thing in things:
            for name, values in WORLD_2.values.items():
                if getattr(thing, name) not in values:
                    raise ValueError(f"{name} {getattr(thing, name)!r}: expected one of {values}")
        if scene.background not in WORLD_2.backgrounds:
            expected = WORLD_2.backgrounds
            raise ValueError(f"background {scene.background!r}: expected one of {expected}")
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


def options(scene: Scene, attribute: Attribute, world: World = WORLD_1) -> list[str]:
    """The values an attribute can take, the present one first: no second thing of one place, of one
    kind or of one family of kinds.
    """
    index, name = attribute
    if index is None:
        return [scene.background, *(b for b in world.backgrounds if b != scene.background)]
    others = [thing for i, thing in enumerate(scene.things) if i != index]
    present = getattr(scene.things[index], name)
    values = [value for value in world.values[name] if value != present]
    if name == "place":
        values = [value for value in values if value not in {thing.place for thing in others}]
    if name == "kind":
        kinds = [thing.kind for thing in others]
        values = [value for value in values if world.compatible([value, *kinds])]
    return [present, *values]


def edited(scene: Scene, attribute: Attribute, value: str, style_seed: int | None = None) -> Scene:
    """The scene with one attribute changed to `value`, and a new style seed where one is given."""
    index, name = attribute
    style_seed = scene.style_seed if style_seed is None else style_seed
    if index is None:
        return replace(scene, background=value, style_seed=style_seed)
    things = list(scene.things)
    things[index] = replace(things[index], **{name: value})
    return replace(scene, things=tuple(things), style_seed=style_seed)


def random_scene(rng: random.Random, world: World = WORLD_1) -> Scene:
    """One scene, each attribute drawn evenly."""
    count = rng.choices(range(1, MOST_THINGS + 1), COUNT_WEIGHTS)[0]
    kinds = rng.sample(world.kinds, count)
    while not world.compatible(kinds):
        kinds = rng.sample(world.kinds, count)
    places = rng.sample(world.places, count)
    things = tuple(
        Thing(
            kind, rng.choice(world.colours), rng.choice(world.sizes), rng.choice(world.textures),
            place,
        )
        for kind, place in zip(kinds, places, strict=True)
    )  # fmt: skip
    return Scene(things, rng.choice(world.backgrounds), new_style_seed(rng))


def twin_group(
    rng: random.Random,
    shape: tuple[int, ...] | None = None,
    scene: Scene | None = None,
    world: World = WORLD_1,
) -> list[Scene]:
    """Scenes that share all but a few attributes: the product of `shape[i]` values of attribute i.

    In a group of shape (4,) each scene has 3 twins (scenes that differ in exactly that attribute),
    in (3, 2) it has 2 + 1, in (2, 2, 2) it has 3 x 1. None: one of GROUP_SHAPES. scene: the one
    that is varied, None for a random one.
    """
    shape = shape or rng.choice(GROUP_SHAPES)
    scene = scene or random_scene(rng, world)
    varied: list[tuple[Attribute, list[str]]] = []
    candidates = rng.sample(attributes(scene), len(attributes(scene)))
    for wanted in shape:
        for attribute in candidates:
            values = options(scene, attribute, world)
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


def gallery(samples: int, seed: int, world: World = WORLD_1) -> list[Scene]:
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
        group = twin_group(rng, shape, world=world)
        room = left - len(group)
        if len(group) < TWINS + 1 or 0 < room <= TWINS or room < 0:
            continue
        if seen.isdisjoint(scene.facts for scene in group):
            seen.update(scene.facts for scene in group)
            scenes.extend(group)
    rng.shuffle(scenes)
    return scenes


def stream(seed: int, twins: float = 0.6, world: World = WORLD_1) -> Iterator[Scene]:
    """Scenes without end for training: about `twins` of them in twin groups, the rest on their
    own.
    """
    rng = random.Random(f"stream {seed}")
    mean_group = 5.5
    alone = (1 - twins) * mean_group / (twins + (1 - twins) * mean_group) if twins else 1.0
    while True:
        if rng.random() < alone:
            yield random_scene(rng, world)
        else:
            yield from twin_group(rng, world=world)


def new_style_seed(rng: random.Random) -> int:
    """A style seed for a scene."""
    return rng.randrange(2**31)

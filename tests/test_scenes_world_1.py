"""World 1 is what it was: galleries, streams, captions, pictures and the withheld set, bit by bit.

All figures on galleries of world 1 stay comparable only while these digests stay the same.
"""

import hashlib
import itertools
import json
import random

import pytest

from chiasm.pipeline.scenes import world
from chiasm.pipeline.scenes.claims import RELATIONS
from chiasm.pipeline.scenes.draw import picture
from chiasm.pipeline.scenes.hard_twins import hard_gallery
from chiasm.pipeline.scenes.samples import samples
from chiasm.pipeline.scenes.unseen import unseen_gallery, withheld, withheld_in
from chiasm.pipeline.scenes.words import LANGUAGES, caption


def digest(values):
    """The first 16 hexadecimal digits of the SHA-256 of values as JSON."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def facts(scenes):
    return [scene.to_json() for scene in scenes]


def unseen():
    scenes, claims = unseen_gallery(200, 5)
    return [facts(scenes), [claim.to_json() for claim in claims]]


def captions(language):
    drawn = itertools.islice(world.stream(1), 300)
    return [caption(scene, n, language, complete=n % 3 > 0).text for n, scene in enumerate(drawn)]


def options():
    scene = world.random_scene(random.Random(3))
    return [world.options(scene, attribute) for attribute in world.attributes(scene)]


def combinations():
    every = itertools.product(world.COLOURS, world.KINDS, RELATIONS)
    return [list(parts) for parts in every if withheld(*parts)]


def places():
    return [withheld_in(scene) for scene in itertools.islice(world.stream(2), 500)]


WRITTEN = {
    "gallery": (lambda: facts(world.gallery(1000, 9001)), "c7209cfba70e1bab"),
    "stream": (lambda: facts(itertools.islice(world.stream(0), 500)), "5098f5c3496cba2e"),
    "hard gallery": (lambda: facts(hard_gallery(300, 4)), "b4ffbb713459510a"),
    "unseen gallery": (unseen, "0ffd16c388ca81fc"),
    "withheld combinations": (combinations, "f299f004e83fd4d9"),
    "withheld in scenes": (places, "6bf25be6e6ed3272"),
    "options": (options, "f0fbec8b5a863c7f"),
    "English captions": (lambda: captions("en"), "da464b981ac3454a"),
    "Chinese captions": (lambda: captions("zh"), "911d2926f95bd8da"),
    "samples": (
        lambda: [s["json"] for s in samples(world.gallery(20, 6), 6, side=8)],
        "ce77fe5ab3f1e4c0",
    ),
}


def test_world_1_has_its_values():
    values = [world.KINDS, world.COLOURS, world.SIZES, world.TEXTURES, world.PLACES]
    assert digest([*values, world.BACKGROUNDS]) == "4c8fe05c41d0a04a"
    assert LANGUAGES == ("en", "zh")


@pytest.mark.parametrize("name", WRITTEN)
def test_world_1_is_drawn_as_ever(name):
    make, expected = WRITTEN[name]
    assert digest(make()) == expected


@pytest.mark.parametrize(("side", "expected"), [(96, "543be30e06500639"), (72, "31298183a1d223f1")])
def test_pictures_of_world_1_keep_their_pixels(side, expected):
    """Every kind, colour, texture and background is in one of them."""
    drawn = list(itertools.islice(world.stream(8), 120))
    met = {name: {getattr(t, name) for s in drawn for t in s.things} for name in world.VALUES}
    assert all(met[name] == set(values) for name, values in world.VALUES.items())
    assert {scene.background for scene in drawn} == set(world.BACKGROUNDS)
    pixels = b"".join(picture(scene, side).tobytes() for scene in drawn)
    assert hashlib.sha256(pixels).hexdigest()[:16] == expected

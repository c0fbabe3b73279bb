"""World 2: a superset of world 1, ambiguous words, and combinations that no training draws."""

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
from scene_differences import differences

from chiasm.pipeline.scenes.claims import RELATIONS, Claims, ThingClaim, holds, holds_matrix
from chiasm.pipeline.scenes.draw import picture
from chiasm.pipeline.scenes.hard_twins import hard_group
from chiasm.pipeline.scenes.samples import facts_of_sample, samples
from chiasm.pipeline.scenes.unseen import unseen_gallery, withheld, withheld_in
from chiasm.pipeline.scenes.vocabulary import COUNTERS, homonyms, phrases
from chiasm.pipeline.scenes.words import plan, render_caption
from chiasm.pipeline.scenes.world import (
    FACES,
    SENSES,
    WORLD_1,
    WORLD_2,
    Scene,
    Thing,
    attributes,
    edited,
    gallery,
    options,
    random_scene,
    stream,
)

BIRD = Scene((Thing("crane bird", "red", "big", "plain", "left"),), "storm", 3)
MACHINE = edited(BIRD, (0, "kind"), "crane machine")


def test_world_2_begins_with_world_1():
    for name, values in WORLD_1.values.items():
        assert WORLD_2.values[name][: len(values)] == values
    assert WORLD_2.backgrounds[: len(WORLD_1.backgrounds)] == WORLD_1.backgrounds
    assert len(set(WORLD_2.kinds)) == len(WORLD_2.kinds)


def drawn():
    """Scenes of every function that draws world 2."""
    rng = random.Random(0)
    scenes = [*itertools.islice(stream(0, world=WORLD_2), 400), *gallery(200, 1, WORLD_2)]
    return [*scenes, *hard_group(rng, world=WORLD_2), *unseen_gallery(60, 2, WORLD_2)[0]]


def test_scenes_of_world_2_use_all_of_it_and_no_two_kinds_of_a_family():
    scenes = drawn()
    for name, values in WORLD_2.values.items():
        assert {getattr(thing, name) for scene in scenes for thing in scene.things} == set(values)
    assert {scene.background for scene in scenes} == set(WORLD_2.backgrounds)
    for scene in scenes:
        assert WORLD_2.compatible([thing.kind for thing in scene.things])
        assert Scene.from_json(scene.to_json()) == scene


def test_an_option_is_never_of_the_family_of_another_thing():
    face = Thing("face", "red", "big", "plain", "left")
    scene = Scene((face, Thing("crane bird", "blue", "big", "plain", "top")), "fair")
    of_face, of_crane = (options(scene, (i, "kind"), WORLD_2) for i in (0, 1))
    assert {"crying face", "calm face"} < set(of_face) and "crane machine" not in of_face
    assert "crane machine" in of_crane and not set(FACES) & set(of_crane)


def test_ambiguous_words_are_those_of_the_senses_and_of_nothing_else():
    pairs = {language: set(homonyms(language).values()) for language in ("en", "zh")}
    assert pairs["en"].isdisjoint(pairs["zh"])
    assert pairs["en"] | pairs["zh"] == set(SENSES)
    assert len(pairs["en"]) >= 6 and len(pairs["zh"]) >= 2
    # A counter must not give away the sense that the word leaves open.
    assert all(len({COUNTERS.get(kind) for kind in kinds}) == 1 for kinds in pairs["zh"])


def test_world_1_calls_a_smile_a_face_and_world_2_does_not():
    claims = Claims((ThingClaim("face"),))
    said = {
        world.name: {render_caption(claims, random.Random(n), "en", world) for n in range(30)}
        for world in (WORLD_1, WORLD_2)
    }
    assert said == {
        "world 1": {"a face", "a smiling face"}, "world 2": {"a smiling face", "a happy face"},
    }  # fmt: skip
    assert "脸" not in phrases("zh", WORLD_2)["face"]


def test_the_truth_of_words_is_not_that_of_what_was_meant():
    claims = Claims((ThingClaim("crane bird", "red"),))
    assert holds(claims, BIRD) and not holds(claims, MACHINE)
    assert holds(claims, MACHINE, "en") and not holds(claims, MACHINE, "zh")
    assert not holds(replace(claims, background="snow"), MACHINE, "en")
    assert not holds(Claims((ThingClaim("bat club"),)), MACHINE, "en")


def test_both_routes_to_the_truth_agree_in_world_2():
    scenes, rng = drawn()[:150], random.Random(4)
    scenes += [BIRD, MACHINE]
    claims = [plan(scene, rng, complete=rng.random() < 0.2) for scene in scenes]
    claims += [Claims((ThingClaim(kind),)) for kind in WORLD_2.kinds]
    languages = [rng.choice(("en", "zh")) for _ in claims]
    for given in (None, languages):
        slow = [
            [holds(claim, scene, language) for scene in scenes]
            for claim, language in zip(claims, given or itertools.repeat(None), strict=False)
        ]
        np.testing.assert_array_equal(holds_matrix(claims, scenes, given), slow)


def test_one_combination_in_twenty_is_withheld_of_every_kind_and_all_of_world_1_s():
    every = list(itertools.product(WORLD_2.colours, WORLD_2.kinds, RELATIONS))
    kept = [parts for parts in every if not withheld(*parts)]
    assert len(every) - len(kept) == len(every) / 20
    for parts in itertools.combinations(range(3), 2):
        of_all = {tuple(combination[p] for p in parts) for combination in every}
        assert {tuple(combination[p] for p in parts) for combination in kept} == of_all
    of_world_1 = {parts for parts in every if parts[1] in WORLD_1.kinds} - set(kept)
    assert len(of_world_1) == 40  # test_scenes_world_1.py states which
    assert any(withheld_in(scene) for scene in unseen_gallery(40, 3, WORLD_2)[0])


def test_every_attribute_of_world_2_can_be_seen():
    """At 72 pixels, where a big thing is 24 pixels wide and a small one 16."""
    rng = random.Random(5)
    while len((scene := random_scene(rng, WORLD_2)).things) < 3:
        pass
    drawn = np.asarray(picture(scene, 72)).astype(int)
    for attribute in attributes(scene):
        for value in options(scene, attribute, WORLD_2)[1:]:
            other = np.asarray(picture(edited(scene, attribute, value), 72)).astype(int)
            assert (np.abs(drawn - other).max(-1) > 40).sum() >= 12, (attribute, value)


@pytest.mark.parametrize("size", WORLD_2.sizes)
@pytest.mark.parametrize("colour", ["red", "black", "white"])
def test_no_two_kinds_of_a_family_look_alike(size, colour):
    for family in WORLD_2.families:
        scenes = [
            Scene((Thing(kind, colour, size, "plain", "middle"),), "snow", 1) for kind in family
        ]
        pixels = [np.asarray(picture(scene, 72)).astype(int) for scene in scenes]
        for one, other in itertools.combinations(pixels, 2):
            assert (np.abs(one - other).max(-1) > 40).sum() >= 18, family


def test_samples_of_world_2_are_read_back():
    (sample,) = samples([BIRD], 1, side=8, world=WORLD_2)
    scene, claims = facts_of_sample(sample["json"])
    assert scene == BIRD and holds(claims, scene) and differences(scene, MACHINE) == 1
    assert "crane" in sample["txt"] and "crane bird" not in sample["txt"]

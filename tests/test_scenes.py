"""The picture-book world: facts, pictures, captions and what they claim, recall by claims."""

import io
import itertools
import json
import random
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scene_differences import differences

from chiasm.pipeline.metrics import recalls, right_at, top_k
from chiasm.pipeline.scenes import world
from chiasm.pipeline.scenes.claims import Claims, ThingClaim, holds, holds_matrix
from chiasm.pipeline.scenes.draw import picture
from chiasm.pipeline.scenes.recall import recall_by_claims
from chiasm.pipeline.scenes.samples import facts_of_sample, samples
from chiasm.pipeline.scenes.shapes_world_2 import SHAPES_OF_BOTH
from chiasm.pipeline.scenes.words import LANGUAGES, caption, plan, render_caption
from chiasm.pipeline.scenes.world import Scene, Thing

SEEDS = st.integers(0, 2**32)
BOAT = Thing("boat", "red", "big", "plain", "left")
STAR = Thing("star", "blue", "small", "striped", "top right")
SCENE = Scene((BOAT, STAR), "sea", style_seed=1)


def neighbours(scenes):
    """How many others lie exactly one attribute away, counted the slow way."""
    return [sum(differences(a, b) == 1 for b in scenes) for a in scenes]


@settings(max_examples=8, deadline=None)
@given(seed=SEEDS, samples=st.integers(4, 70))
def test_every_scene_of_a_gallery_has_three_twins(seed, samples):
    scenes = world.gallery(samples, seed)
    assert len(scenes) == samples
    assert len({scene.facts for scene in scenes}) == samples
    assert min(neighbours(scenes)) >= 3
    assert scenes == world.gallery(samples, seed)


@pytest.mark.parametrize("samples", range(4, 24))
def test_a_gallery_has_exactly_as_many_scenes_as_asked(samples):
    assert len(world.gallery(samples, seed=1)) == samples


def test_a_gallery_of_three_is_refused():
    with pytest.raises(ValueError, match="3 scenes: expected at least 4"):
        world.gallery(3, seed=1)


def test_few_scenes_of_a_gallery_share_a_caption():
    captions = [sample["txt"] for sample in samples_without_pictures(1000, seed=3)]
    shared = sum(captions.count(text) > 1 for text in captions)
    assert shared <= 50


def samples_without_pictures(count, seed):
    """The samples of a gallery with very small pictures, which is quicker."""
    return samples(world.gallery(count, seed), seed, side=8)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_facts_survive_json(seed):
    scene = world.random_scene(random.Random(seed))
    assert Scene.from_json(json.loads(json.dumps(scene.to_json()))) == scene


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"background": "moonbase"}, "background 'moonbase'"),
        ({"things": []}, "1 to 3 things"),
        ({"things": [{"kind": "boat"}]}, "not the facts of a scene"),
        ({"things": [asdict(BOAT) | {"colour": "mauve"}]}, "colour 'mauve'"),
        ({"look": "x"}, "whole number as look"),
    ],
)
def test_other_json_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Scene.from_json(SCENE.to_json() | change)


def test_differences_do_not_depend_on_the_order_of_things():
    assert differences(SCENE, replace(SCENE, things=(STAR, BOAT))) == 0
    twin = replace(SCENE, things=(replace(STAR, colour="green"), BOAT))
    assert differences(SCENE, twin) == 1
    assert differences(SCENE, replace(SCENE, things=(BOAT,))) == 5


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_an_edit_changes_one_attribute(seed):
    rng = random.Random(seed)
    scene = world.random_scene(rng)
    attribute = rng.choice(world.attributes(scene))
    present, *others = world.options(scene, attribute)
    assert world.edited(scene, attribute, present) == scene
    edited = world.edited(scene, attribute, rng.choice(others))
    assert differences(scene, edited) == 1
    assert edited == Scene.from_json(edited.to_json())


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, language=st.sampled_from(LANGUAGES), complete=st.booleans())
def test_captions_are_true_of_their_scenes(seed, language, complete):
    scene = world.random_scene(random.Random(seed))
    rendered = caption(scene, seed, language, complete)
    assert rendered == caption(scene, seed, language, complete)
    assert holds(rendered.claims, scene)
    assert Claims.from_json(json.loads(json.dumps(rendered.claims.to_json()))) == rendered.claims


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS)
def test_complete_captions_are_false_of_twins_but_for_place(seed):
    rng = random.Random(seed)
    scene = world.random_scene(rng)
    claims = plan(scene, rng)
    for attribute in world.attributes(scene):
        if attribute[1] == "place":
            continue
        for value in world.options(scene, attribute)[1:]:
            assert not holds(claims, world.edited(scene, attribute, value))


def test_places_and_relations_are_claims():
    claims = Claims((ThingClaim("boat"), ThingClaim("star")), ((0, "left of", 1),))
    assert holds(claims, SCENE)
    assert holds(replace(claims, relations=((1, "above", 0),)), SCENE)
    assert not holds(replace(claims, relations=((0, "above", 1),)), SCENE)
    assert not holds(claims, replace(SCENE, things=(replace(BOAT, place="right"), STAR)))
    assert holds(Claims((ThingClaim("star", column="right"),)), SCENE)
    assert not holds(Claims((ThingClaim("star", row="bottom"),)), SCENE)
    # Two things are claimed, and one cannot stand for both.
    assert not holds(Claims((ThingClaim(colour="red"), ThingClaim(size="big"))), SCENE)


def test_what_is_unsaid_is_no_claim():
    assert holds(Claims((ThingClaim("star", colour="blue"),)), SCENE)
    assert holds(Claims(), SCENE)
    assert not holds(Claims(background="snow"), SCENE)


def test_both_routes_to_the_truth_agree():
    scenes = world.gallery(60, seed=5)
    rng = random.Random(5)
    claims = [plan(scene, rng, complete=rng.random() < 0.3) for scene in scenes]
    # Claims that no caption makes: rows without columns, several relations, no kind.
    claims += [
        Claims((ThingClaim(row="centre"), ThingClaim(size="big")), ((0, "above", 1),)),
        Claims((ThingClaim(), ThingClaim()), ((0, "left of", 1), (0, "below", 1))),
        Claims((ThingClaim(), ThingClaim(), ThingClaim(texture="plain"))),
        Claims(),
    ]
    slow = np.array([[holds(claim, scene) for scene in scenes] for claim in claims])
    assert slow.any(0).all() and not slow.all(0).any()
    np.testing.assert_array_equal(holds_matrix(claims, scenes), slow)
    np.testing.assert_array_equal(np.diagonal(slow), True)


def test_words_say_what_is_claimed():
    rng = random.Random(1)
    claims = Claims(
        (ThingClaim("boat", "red", "big"), ThingClaim("moon")), ((0, "below", 1),), "night"
    )
    english = {render_caption(claims, rng, "en") for _ in range(400)}
    chinese = {render_caption(claims, rng, "zh") for _ in range(400)}
    assert "a big red boat under a moon at night" in english
    assert "夜空下，一艘大的红色的船在一轮月亮的下面" in chinese
    assert len(english) > 10 and len(chinese) > 4
    assert not any("green" in text or "striped" in text for text in english)


def test_pictures_follow_from_facts_alone():
    first, again = picture(SCENE), picture(SCENE)
    assert first.mode == "RGB" and first.size == (96, 96)
    assert first.tobytes() == again.tobytes()
    first.paste((0, 0, 0), (0, 0, 96, 96))  # a picture is the caller's own: the cache keeps clean
    assert picture(SCENE).tobytes() == again.tobytes()
    assert picture(replace(SCENE, style_seed=2)).tobytes() != again.tobytes()
    assert picture(SCENE, 48).size == (48, 48)


def test_every_attribute_can_be_seen():
    drawn = np.asarray(picture(SCENE)).astype(int)
    for attribute in world.attributes(SCENE):
        for value in world.options(SCENE, attribute)[1:]:
            other = np.asarray(picture(world.edited(SCENE, attribute, value))).astype(int)
            assert (np.abs(drawn - other).max(-1) > 40).sum() >= 12, (attribute, value)


def test_every_kind_has_a_shape():
    assert tuple(SHAPES_OF_BOTH) == world.WORLD_2.kinds


def test_samples_are_those_of_a_shard():
    (sample, *_) = samples([SCENE], seed=7)
    assert list(sample) == ["__key__", "png", "txt", "json"]
    with Image.open(io.BytesIO(sample["png"])) as image:
        assert image.tobytes() == picture(SCENE).tobytes()
    record = json.loads(json.dumps(sample["json"]))
    scene, claims = facts_of_sample(record)
    assert scene == SCENE and holds(claims, scene)
    assert sample["txt"] == record["captions"][0]
    assert len(record["captions"]) == len(record["zh"]) == len(record["claims"]) == 3
    assert all(holds(Claims.from_json(c), scene) for c in record["claims"])
    with pytest.raises(ValueError, match="without the claims"):
        facts_of_sample(SCENE.to_json())


def test_a_stream_mixes_twins_and_strangers():
    scenes = list(itertools.islice(world.stream(seed=2), 150))
    twinned = sum(n >= 3 for n in neighbours(scenes)) / len(scenes)
    assert 0.4 < twinned < 0.8
    assert scenes == list(itertools.islice(world.stream(seed=2), 150))
    alone = list(itertools.islice(world.stream(seed=2, twins=0), 60))
    assert max(neighbours(alone)) == 0


def test_recall_counts_truth_not_identity():
    boats = [Scene((replace(BOAT, texture=t),), "sea") for t in ("plain", "striped")]
    stars = [Scene((replace(STAR, colour=c),), "sea") for c in ("blue", "green")]
    scenes = [*boats, *stars]
    claims = [Claims((ThingClaim("boat"),)), Claims((ThingClaim("star", "green"),))]
    scores = np.array([[0.1, 0.9, 0.2, 0.3], [0.8, 0.2, 0.7, 0.6]])
    found = recall_by_claims(scores, claims, scenes, ks=(1, 3))
    # Caption 0 finds the other boat, which is right; caption 1 finds its star third.
    assert found["text_to_image"] == {"r1": 0.5, "r3": 1.0}
    # Picture 1 finds caption 0; pictures 0 and 2 find what is not theirs; 3 finds its own.
    assert found["image_to_text"] == {"r1": 0.5, "r3": 0.75}


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 9))
def test_recall_is_what_brute_force_says(seed, queries, rows):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, (queries, rows)).astype(np.float32)  # ties on purpose
    correct = rng.random((queries, rows)) < 0.3
    ranked = [sorted(range(rows), key=lambda n: (-row[n], n)) for row in scores]
    expected = np.mean([any(c[n] for n in r[:5]) for r, c in zip(ranked, correct, strict=True)])
    assert top_k(scores, 5).tolist() == [r[:5] for r in ranked]
    assert recalls(right_at(ranked, correct), ks=(5,)) == {"r5": expected}


def test_recall_of_lists_of_another_length_is_refused():
    with pytest.raises(ValueError, match="expected 1 lists of hits, found 2"):
        right_at([[0], [1]], np.ones((1, 2), dtype=bool))

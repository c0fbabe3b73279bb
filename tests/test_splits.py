"""Hard twins and unseen combinations: what their galleries promise, counted one by one."""

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scene_differences import differences

from chiasm.pipeline.scenes.claims import RELATIONS, holds
from chiasm.pipeline.scenes.hard_twins import hard_gallery, hard_group, swapped, without_last
from chiasm.pipeline.scenes.unseen import unseen_gallery, withheld, withheld_in
from chiasm.pipeline.scenes.words import plan
from chiasm.pipeline.scenes.world import COLOURS, KINDS, WORLD_1, WORLD_2, stream
from chiasm.pipeline.training.pocket.data import (
    DataSettings,
    learn_tokenizer,
    scenes_of,
    train_batch,
)


def one_change_apart(one, other):
    """In an attribute, in a thing more or less, or in two things' places."""
    fewer, more = sorted((one, other), key=lambda scene: len(scene.things))
    if len(fewer.things) != len(more.things):
        same = set(fewer.things) < set(more.things) and fewer.background == more.background
        return same and len(more.things) == len(fewer.things) + 1
    pairs = itertools.combinations(range(len(one.things)), 2)
    return differences(one, other) == 1 or any(
        swapped(one, i, j).facts == other.facts for i, j in pairs
    )


@given(seed=st.integers(0, 2**31), neighbours=st.integers(2, 9))
def test_every_scene_of_a_hard_group_has_as_many_neighbours_as_asked(seed, neighbours):
    group = hard_group(random.Random(seed), neighbours)
    assert len({scene.facts for scene in group}) == len(group)
    for scene in group[:6]:
        near = [other for other in group if other is not scene and one_change_apart(scene, other)]
        assert len(near) == neighbours


def test_hard_groups_change_attributes_counts_and_relations():
    rng = random.Random(0)
    kinds = {"attribute": 0, "count": 0, "relation": 0}
    for _ in range(40):
        group = hard_group(rng)
        first, pairs = group[0], [scene for scene in group[1:] if one_change_apart(group[0], scene)]
        for scene in pairs:
            if len(scene.things) != len(first.things):
                kinds["count"] += 1
            elif differences(first, scene) == 1:
                kinds["attribute"] += 1
            else:
                kinds["relation"] += 1
    assert min(kinds.values()) > 10


def test_a_hard_gallery_is_whole_groups_and_follows_from_its_seed():
    scenes = hard_gallery(100, seed=3)
    assert len(scenes) >= 100
    assert len({scene.facts for scene in scenes}) == len(scenes)
    assert scenes == hard_gallery(100, seed=3) != hard_gallery(100, seed=4)
    for scene in scenes[:10]:
        assert sum(one_change_apart(scene, other) for other in scenes if other is not scene) >= 9


def test_a_swap_turns_relations_round_and_a_missing_thing_makes_captions_false():
    rng = random.Random(1)
    scenes = [scene for scene in itertools.islice(stream(5), 200) if len(scene.things) > 1]
    for scene in scenes:
        claims = plan(scene, rng, relation=(0, _true(scene), 1))
        assert holds(claims, scene)
        assert not holds(claims, swapped(scene)) and not holds(claims, without_last(scene))
        assert swapped(swapped(scene)) == scene


def _true(scene):
    one, other = scene.things[:2]
    if one.column != other.column:
        return "left of" if one.column < other.column else "right of"
    return "above" if one.row < other.row else "below"


def test_one_combination_in_twenty_is_withheld_and_each_pair_of_its_parts_is_not():
    every = list(itertools.product(COLOURS, KINDS, RELATIONS))
    kept = [combination for combination in every if not withheld(*combination)]
    assert len(every) - len(kept) == len(every) / 20
    for parts in itertools.combinations(range(3), 2):
        of_all = {tuple(combination[p] for p in parts) for combination in every}
        assert {tuple(combination[p] for p in parts) for combination in kept} == of_all


@pytest.mark.parametrize("step", [0, 1, 777])
def test_no_batch_shows_or_tells_what_is_withheld(step):
    settings = DataSettings(batch=200)
    scenes, rng = scenes_of(step, settings), random.Random(step)
    assert len(scenes) == 200 and not any(withheld_in(scene) for scene in scenes)
    for scene in scenes:
        for claims in (plan(scene, rng), plan(scene, rng, complete=False)):
            for i, relation, _ in claims.relations:
                colour, kind = claims.things[i].colour, claims.things[i].kind
                assert colour is None or not withheld(colour, kind, relation)


def test_batches_hold_hard_twins():
    with_, without = (
        sum(_swaps(scenes_of(step, DataSettings(hard=hard))) for step in range(8))
        for hard in (0.08, 0.0)
    )
    assert with_ > 20 > without


def _swaps(scenes):
    two = [scene for scene in scenes if len(scene.things) > 1]
    facts = {scene.facts for scene in scenes}
    return sum(swapped(scene).facts in facts for scene in two)


def test_queries_of_the_unseen_gallery_tell_unseen_combinations():
    scenes, claims = unseen_gallery(120, seed=2)
    assert (scenes, claims) == unseen_gallery(120, seed=2)
    telling = 0
    for scene, claim in zip(scenes, claims, strict=True):
        assert holds(claim, scene)
        if withheld_in(scene):
            ((i, relation, _),) = claim.relations
            thing = claim.things[i]
            assert withheld(thing.colour, thing.kind, relation)
            telling += 1
    assert telling > 60


def test_every_second_step_draws_from_the_other_world_and_calls_a_smile_a_face():
    settings = DataSettings(batch=60, world=WORLD_2.name, other_world=WORLD_1.name, hard=0.2)
    alone = replace(settings, world=WORLD_1.name, other_world="")
    assert scenes_of(3, settings) == scenes_of(3, alone)
    kinds = {thing.kind for scene in scenes_of(2, settings) for thing in scene.things}
    assert kinds - set(KINDS)
    faces = [
        scene for scene in scenes_of(3, settings) if any(t.kind == "face" for t in scene.things)
    ]
    assert faces
    tokenizer = learn_tokenizer(400, 100, WORLD_2)
    batch = train_batch(3, settings, tokenizer)
    only = train_batch(3, alone, tokenizer)
    for mixed, plain in zip(batch.captions, only.captions, strict=True):
        assert np.array_equal(mixed.ids, plain.ids) and len(mixed.kinds[0]) == len(WORLD_2.kinds)
        assert np.array_equal(mixed.kinds[:, : len(KINDS)], plain.kinds)
    assert np.array_equal(batch.pixels, only.pixels)
    assert batch.kinds.shape[1] == len(WORLD_2.kinds)

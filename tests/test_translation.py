"""Captions read back by the grammar, and translations that only the picture settles."""

import itertools
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scene_differences import differences

from chiasm.pipeline.scenes.claims import Claims, ThingClaim, holds
from chiasm.pipeline.scenes.parse import parse_caption
from chiasm.pipeline.scenes.translation import ambiguous_pair, is_rendering, translation
from chiasm.pipeline.scenes.unseen import withheld_in
from chiasm.pipeline.scenes.vocabulary import homonyms
from chiasm.pipeline.scenes.words import LANGUAGES, plan, render_caption
from chiasm.pipeline.scenes.world import WORLD_1, WORLD_2, random_scene

SEEDS = st.integers(0, 2**32)


class Enumerated(random.Random):
    """Random numbers that take a given path through all choices that are made of them."""

    def __init__(self, path):
        super().__init__(0)
        self.path, self.taken, self.widths = path, 0, []

    def branch(self, width):
        index = self.path[self.taken] if self.taken < len(self.path) else 0
        self.taken += 1
        self.widths.append(width)
        return index

    def random(self):
        return (0.0, 0.999)[self.branch(2)]

    def choice(self, values):
        return values[self.branch(len(values))]


def every_rendering(claims, language, world):
    """All texts that `render_caption` can give, by walking through all of its choices."""
    texts, path = set(), []
    while True:
        rng = Enumerated(path)
        texts.add(render_caption(claims, rng, language, world))
        path = [*path, *[0] * (len(rng.widths) - len(path))]
        while path and path[-1] + 1 == rng.widths[len(path) - 1]:
            path.pop()
        if not path:
            return texts
        path[-1] += 1


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.sampled_from(LANGUAGES), st.sampled_from([WORLD_1, WORLD_2]), st.booleans())
def test_every_rendering_is_accepted_for_its_claims_and_its_scene(seed, language, world, complete):
    rng = random.Random(seed)
    scene = random_scene(rng, world)
    claims = plan(scene, rng, complete)
    text = render_caption(claims, rng, language, world)
    assert claims in parse_caption(text, language, world)
    assert is_rendering(text, claims, language, world)
    assert is_rendering(text, scene, language, world)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.sampled_from(LANGUAGES))
def test_a_rendering_of_other_claims_is_refused(seed, language):
    rng = random.Random(seed)
    scene = random_scene(rng, WORLD_2)
    claims = plan(scene, rng, complete=rng.random() < 0.5)
    other = plan(random_scene(rng, WORLD_2), rng)
    text = render_caption(other, rng, language, WORLD_2)
    kinds = homonyms(language)
    first = other.things[0]
    senses = kinds.get(first.kind, (first.kind,))
    foreign = [kind for kind in WORLD_2.kinds if kind not in senses]
    for changed in (
        replace(other, background=None),
        replace(other, things=(replace(first, colour=None), *other.things[1:])),
        replace(other, things=(replace(first, kind=rng.choice(foreign)), *other.things[1:])),
        replace(other, things=(replace(first, size="big" if first.size == "small" else "small"),
                               *other.things[1:])),
        *([replace(other, relations=((1, other.relations[0][1], 0),))] if other.relations else []),
    ):  # fmt: skip
        assert not is_rendering(text, changed, language)
    if not holds(other, scene, language):
        assert not is_rendering(text, claims, language)
        assert not is_rendering(text, scene, language)


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_text_is_accepted_that_is_not_rendered(language):
    """All wordings of one claim, and all texts one word or character away from some of them."""
    claims = Claims((ThingClaim("apple", "red", "big", "striped", None, "left"),), (), "room")
    every = every_rendering(claims, language, WORLD_2)
    assert len(every) >= 8 and all(is_rendering(text, claims, language) for text in every)
    rng, joint = random.Random(3), " " if language == "en" else ""
    words = sorted({word for text in every for word in (text.split() if joint else text)})
    refused = 0
    for text in sorted(every)[:24]:
        parts = text.split() if joint else list(text)
        for i in range(len(parts)):
            for new in ([], [rng.choice(words)], [parts[i], parts[i]]):
                edited = joint.join([*parts[:i], *new, *parts[i + 1 :]])
                assert is_rendering(edited, claims, language) == (edited in every), edited
                refused += edited not in every
    assert refused > 100


def test_the_order_in_which_things_are_named_does_not_matter():
    boat, star = ThingClaim("boat", "red"), ThingClaim("star")
    claims = Claims((boat, star), ((0, "left of", 1),))
    assert is_rendering("a star to the right of a red boat", claims, "en")
    assert not is_rendering("a star to the left of a red boat", claims, "en")
    assert is_rendering("一颗星星在一艘红色的船的右边", claims, "zh")
    assert not is_rendering("一颗星星在一只红色的船的右边", claims, "zh")  # 只: no boat's counter
    assert not is_rendering("an star to the right of a red boat", claims, "en")


@pytest.mark.parametrize("target", LANGUAGES)
def test_a_translation_states_what_its_source_states(target):
    source_language = {"en": "zh", "zh": "en"}[target]
    rng, ambiguous = random.Random(1), 0
    for _ in range(150):
        scene = random_scene(rng, WORLD_2)
        source, text, kind = translation(scene, rng, target)
        (claims,) = (c for c in parse_caption(text, target) if holds(c, scene))
        assert is_rendering(source, claims, source_language) and is_rendering(
            source, scene, source_language
        )
        named = {claim.kind for claim in claims.things} & homonyms(source_language).keys()
        assert kind in named if named else kind is None
        ambiguous += kind is not None
    assert 20 < ambiguous < 130


@pytest.mark.parametrize(("target", "expected"), [("en", 6), ("zh", 14)])
def test_one_sentence_is_true_of_both_scenes_of_a_pair_and_no_translation_is(target, expected):
    source_language = {"en": "zh", "zh": "en"}[target]
    rng, kinds = random.Random(2), set()
    for _ in range(150):
        pair = ambiguous_pair(rng, target)
        assert differences(*pair.scenes) == 1 and not any(map(withheld_in, pair.scenes))
        for scene, text, other, claims in zip(
            pair.scenes, pair.targets, pair.scenes[::-1], pair.claims, strict=True
        ):
            assert is_rendering(pair.source, scene, source_language)
            assert is_rendering(pair.source, claims, source_language)
            assert is_rendering(text, scene, target) and is_rendering(text, claims, target)
            assert not is_rendering(text, other, target)
            assert holds(claims, scene) and not holds(claims, other)
        kinds |= {pair.kinds}
    assert len(kinds) == expected  # both senses come first as often


def test_a_crane_is_a_bird_or_a_machine():
    pairs = (ambiguous_pair(random.Random(seed), "zh") for seed in itertools.count())
    pair = next(pair for pair in pairs if pair.kinds == ("crane bird", "crane machine"))
    assert "crane" in pair.source
    assert "鹤" in pair.targets[0] and pair.targets[1].count("机") + pair.targets[1].count("吊车")


def test_a_world_without_ambiguous_words_is_refused():
    with pytest.raises(ValueError, match="world 1: expected a world with ambiguous words"):
        ambiguous_pair(random.Random(0), "zh", WORLD_1)

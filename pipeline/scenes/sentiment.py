"""Sentiment of a person's remark beside a picture: whether they agree, and in what.

The text is positive (praise), negative (a complaint) or neutral (a plain statement), see
remarks.py. The picture is positive, negative or neutral by its face where it has one: a smiling
face is positive, a crying one negative, a calm one neutral, whatever the background. Without a face
its background decides: a rainbow and a fair are positive, a storm and a dead forest negative, all
others neutral.

The label follows from the two:
    both the same                      that polarity
    one neutral                        the polarity of the other
    one positive, the other negative   mixed: they contradict each other

All nine pairs of polarities are drawn evenly, so that the best rule that sees only the text, or
only the picture, is right five times of nine: of praise two thirds are positive and a third is
mixed, of plain statements a third is each. Withheld combinations are never drawn.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence

from chiasm.pipeline.scenes.remarks import POLARITIES, remark, template_of
from chiasm.pipeline.scenes.unseen import withheld_in
from chiasm.pipeline.scenes.world import (
    FACES,
    WORLD_2,
    Scene,
    World,
    edited,
    options,
    random_scene,
)

MIXED = "mixed"
LABELS = {
    "positive": {"en": "positive", "zh": "正面"},
    "negative": {"en": "negative", "zh": "负面"},
    "neutral": {"en": "neutral", "zh": "中性"},
    MIXED: {"en": "mixed", "zh": "矛盾"},
}
FACE_POLARITIES = dict(zip(FACES, ("positive", "negative", "neutral"), strict=True))
BACKGROUND_POLARITIES = {
    "rainbow": "positive", "fair": "positive", "storm": "negative", "dead forest": "negative",
}  # fmt: skip
FACE_SHARE = 0.5  # of pictures whose polarity is that of a face
Sentiment = tuple[Scene, str, str]  # picture, text, label in the language of the text


def label(text_polarity: str, picture_polarity: str) -> str:
    """One of LABELS: what a text and a picture of these polarities are together."""
    polarities = {text_polarity, picture_polarity} - {"neutral"}
    return MIXED if len(polarities) > 1 else polarities.pop() if polarities else "neutral"


def picture_polarity(scene: Scene) -> str:
    """One of POLARITIES: that of the scene's face, without one that of its background."""
    faces = [thing.kind for thing in scene.things if thing.kind in FACE_POLARITIES]
    if faces:
        return FACE_POLARITIES[faces[0]]
    return BACKGROUND_POLARITIES.get(scene.background, "neutral")


def sentiment(
    rng: random.Random, language: str, world: World = WORLD_2, withheld: bool = False
) -> Sentiment:
    """A picture, a remark and the word for what they are together, in this language. withheld: a
    remark from the templates that no training sees.
    """
    text_polarity, wanted = rng.choice(POLARITIES), rng.choice(POLARITIES)
    scene = _scenes(rng, (wanted,), world)[0]
    text = remark(scene, text_polarity, rng, language, world, withheld)
    return scene, text, LABELS[label(text_polarity, wanted)][language]


def sentiment_pair(
    rng: random.Random, language: str, world: World = WORLD_2, withheld: bool = False
) -> tuple[Sentiment, Sentiment]:
    """One remark with two pictures that differ in the face or in the background alone, so that the
    labels differ.
    """
    text_polarity = rng.choice(POLARITIES)
    while True:
        wanted = rng.sample(POLARITIES, 2)
        labels = [label(text_polarity, polarity) for polarity in wanted]
        if labels[0] != labels[1]:
            break
    scenes = _scenes(rng, wanted, world)
    text = remark(scenes[0], text_polarity, rng, language, world, withheld)
    first, second = (
        (scene, text, LABELS[name][language]) for scene, name in zip(scenes, labels, strict=True)
    )
    return first, second


def _scenes(rng: random.Random, polarities: Sequence[str], world: World) -> list[Scene]:
    """One scene of each polarity, which differ in their face or in their background alone."""
    by_face = rng.random() < FACE_SHARE
    while True:
        scene = random_scene(rng, world)
        if by_face:
            # The background's polarity is drawn evenly too: it must not weigh beside a face.
            scene = edited(scene, (None, "background"), _background(rng, None, world))
            scenes = _with_faces(rng, scene, polarities, world)
        elif any(thing.kind in FACE_POLARITIES for thing in scene.things):
            continue
        else:
            backgrounds = [_background(rng, polarity, world) for polarity in polarities]
            scenes = [edited(scene, (None, "background"), name) for name in backgrounds]
        if scenes and not any(map(withheld_in, scenes)):
            return scenes


def _with_faces(
    rng: random.Random, scene: Scene, polarities: Sequence[str], world: World
) -> list[Scene]:
    """The scene with one thing made a face of each polarity; none where it has another face."""
    attribute = (rng.randrange(len(scene.things)), "kind")
    possible = options(scene, attribute, world)
    kinds = {FACE_POLARITIES[kind]: kind for kind in possible if kind in FACE_POLARITIES}
    if not kinds:
        return []
    return [edited(scene, attribute, kinds[polarity]) for polarity in polarities]


def _background(rng: random.Random, polarity: str | None, world: World) -> str:
    """A background of this polarity; None: of any, each as often."""
    polarity = polarity or rng.choice(POLARITIES)
    return rng.choice(
        [b for b in world.backgrounds if BACKGROUND_POLARITIES.get(b, "neutral") == polarity]
    )


def one_sided_accuracy(drawn: Sequence[Sentiment], language: str) -> dict[str, float]:
    """How often the best rule that sees only one side is right, computed from examples drawn:
    {"text": by the remark's template, "picture": by face and background}. Each rule gives the
    commonest label of its key, among these very examples, so that it is a bound from above.
    ValueError for a text that is no remark.
    """
    templates = [template_of(text, language) for _, text, _ in drawn]
    if None in templates:
        text = drawn[templates.index(None)][1]
        raise ValueError(f"text {text!r}: expected a remark in {language}, found another sentence")
    labels = [label for _, _, label in drawn]
    return {
        "text": _best_rule(templates, labels),
        "picture": _best_rule([_picture_key(scene) for scene, _, _ in drawn], labels),
    }


def _picture_key(scene: Scene) -> tuple[frozenset[str], str]:
    faces = (thing.kind for thing in scene.things if thing.kind in FACE_POLARITIES)
    return frozenset(faces), scene.background


def _best_rule(keys: Iterable[Hashable], labels: Sequence[str]) -> float:
    """The share of labels that are the commonest one of their key."""
    by_key: defaultdict[Hashable, Counter[str]] = defaultdict(Counter)
    for key, name in zip(keys, labels, strict=True):
        by_key[key][name] += 1
    return sum(max(counts.values()) for counts in by_key.values()) / len(labels)

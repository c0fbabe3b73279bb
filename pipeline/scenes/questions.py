"""Questions about scenes, in English and Chinese, each with the one right answer.

`question` draws for training; `paired_questions` asks one text of two scenes that differ in one
fact and in the answer, so that no rule that reads the question alone is right more than half of the
time. Types are in `question_facts.py`, wordings in `question_forms.py`.
"""

from __future__ import annotations

import itertools
import random
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from chiasm.pipeline.scenes.examples import Example
from chiasm.pipeline.scenes.hard_twins import swapped
from chiasm.pipeline.scenes.question_facts import TYPES, Query
from chiasm.pipeline.scenes.question_forms import FORMS, form_numbers
from chiasm.pipeline.scenes.question_words import (
    FURTHER,
    adjective,
    answer_word,
    names,
    phrases,
    place_phrases,
    with_article,
)
from chiasm.pipeline.scenes.world import (
    WORLD_1,
    Scene,
    World,
    edited,
    new_style_seed,
    options,
    random_scene,
)

# Draws of a query before a scene counts as having none of a type: most fail in one draw of eight.
TRIES = 3
PAIR_TRIES = 10_000  # scenes drawn for one pair, of which one in some hundred may be allowed
EVENLY = dict.fromkeys(TYPES, 1.0)
END_MARKS = "?？"


def question(
    scene: Scene,
    rng: random.Random,
    language: str,
    forms: str = "trained",
    kind: str | None = None,
    weights: Mapping[str, float] = EVENLY,
    world: World = WORLD_1,
) -> Example | None:
    """One question about the scene; None where the scene has none of these types.

    forms: trained, withheld or all. kind: one of TYPES; None: drawn by `weights`, type -> weight,
    a type without a weight never. world: the scene's, whose kinds and values are asked for. Yes and
    no are drawn evenly, and half of the questions lack their question mark. ValueError for an
    unknown type, and for unknown `forms`.
    """
    weights = {kind: 1.0} if kind else weights
    _check_types(weights)
    left = {name: weight for name, weight in weights.items() if weight > 0}
    while left:
        name = rng.choices(list(left), list(left.values()))[0]
        for _ in range(TRIES):
            drawn = _draw(name, scene, rng, language, forms, world)
            target = answer(name, scene, drawn[0], language) if drawn else None
            if drawn and target is not None:
                query, number = drawn
                text = question_text(FORMS[language][name][number], query, rng, language)
                return Example("ask", language, text, target, name, number)
        del left[name]
    return None


def paired_questions(
    rng: random.Random,
    kind: str,
    language: str,
    forms: str = "all",
    draw: Callable[[random.Random, World], Scene] = random_scene,
    allowed: Callable[[Scene], bool] = lambda scene: True,
    world: World = WORLD_1,
) -> tuple[Scene, Scene, Example, Example]:
    """One question of two scenes that differ in one fact, with different answers.

    A fact is a value, the number of things, or which of two things is at which of two places.
    kind: one of TYPES. forms, world: as in `question`. draw: draws the scene that is changed; it
    comes first in half of the pairs. allowed: what both scenes have to pass. ValueError as in
    `question`, and where no pair is found.
    """
    _check_types([kind])
    for _ in range(PAIR_TRIES):
        scene = draw(rng, world)
        drawn = _draw(kind, scene, rng, language, forms, world) if allowed(scene) else None
        target = answer(kind, scene, drawn[0], language) if drawn else None
        if not drawn or target is None:
            continue
        query, number = drawn
        twin = _twin(kind, scene, query, target, rng, language, world)
        if twin is None or not allowed(twin[0]):
            continue
        text = question_text(FORMS[language][kind][number], query, rng, language)
        (one, first), (other, second) = rng.sample([(scene, target), twin], 2)
        example = Example("ask", language, text, first, kind, number)
        return one, other, example, replace(example, target=second)
    raise ValueError(
        f"questions of type {kind} in {forms} forms: found none among {PAIR_TRIES} scenes"
    )


def answer(kind: str, scene: Scene, query: Query, language: str) -> str | None:
    """The one right answer to a question of this type; None where there is none or more than
    one.
    """
    fact = TYPES[kind].answer(scene, query, language)
    return None if fact is None else answer_word(TYPES[kind].answers, fact, language)


def question_text(form: str, query: Query, rng: random.Random, language: str) -> str:
    """The query in words, without the question mark in half of the draws."""
    slots: dict[str, str] = {}
    # Of two that are offered the answer repeats one, in its first name.
    offered = "{further}" in form

    def name(kind: str) -> str:
        words = names(kind, language)
        return words[0] if offered else rng.choice(words)

    if query.thing:
        slots["a"] = name(query.thing)
        slots["one"] = with_article(slots["a"], query.thing, language)
    if query.other:
        slots["b"] = name(query.other)
    if query.value:
        slots["like"] = adjective(query.value, rng.choice(phrases(query.value, language)), language)
    if query.place:
        slots["place"] = rng.choice(place_phrases(query.place, language))
    if query.relation:
        slots["relation"] = rng.choice(phrases(query.relation, language))
        slots["further"] = rng.choice(FURTHER[language][query.relation])
    text = form.format_map(slots)
    return text if rng.random() < 0.5 else text.rstrip(END_MARKS)


def same_answer(given: str, wanted: str) -> bool:
    """Whether two answers are the same text under NFKC, in lower case, with single spaces, and
    without a full stop at the end. Nothing else is forgiven: no article, no synonym, no longer
    sentence.
    """
    return _normalised(given) == _normalised(wanted)


def _normalised(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).lower().split()).rstrip(".。 ")


def _check_types(names: Iterable[str]) -> None:
    for name in names:
        if name not in TYPES:
            raise ValueError(f"question type {name!r}: expected one of {', '.join(TYPES)}")


def _draw(
    kind: str,
    scene: Scene,
    rng: random.Random,
    language: str,
    forms: str,
    world: World,
) -> tuple[Query, int] | None:
    """A query and the number of a form; None where the scene or the forms have none."""
    numbers = form_numbers(language, kind, forms)
    query = TYPES[kind].draw(scene, rng, world) if numbers else None
    return (query, rng.choice(numbers)) if query else None


def _twin(
    kind: str,
    scene: Scene,
    query: Query,
    present: str,
    rng: random.Random,
    language: str,
    world: World,
) -> tuple[Scene, str] | None:
    """A scene one change away in which the query has another answer than `present`, and that."""
    changes = TYPES[kind].changes
    for change in rng.sample(changes, len(changes)):
        twins = _changed(scene, query.field if change == "like" else change, world)
        for twin in rng.sample(twins, len(twins)):
            target = answer(kind, twin, query, language)
            if target is not None and target != present:
                return replace(twin, style_seed=new_style_seed(rng)), target
    return None


def _changed(scene: Scene, change: str, world: World) -> list[Scene]:
    """All scenes one change of this sort away."""
    count = len(scene.things)
    if change == "swap":
        return [swapped(scene, i, j) for i, j in itertools.combinations(range(count), 2)]
    if change == "fewer":
        fewer = itertools.combinations(scene.things, count - 1) if count > 1 else ()
        return [replace(scene, things=things) for things in fewer]
    attributes = [(None, change)] if change == "background" else [(i, change) for i in range(count)]
    return [
        edited(scene, attribute, value)
        for attribute in attributes
        for value in options(scene, attribute, world)[1:]
    ]

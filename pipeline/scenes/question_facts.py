"""What questions ask of a scene, without words: queries, their one right answer, and the types.

A query selects things by what it says of them: a name, a place, a value, a relation to another
thing. It has an answer where that selects as many things as its words promise: "the thing left of
the cat" has none where two things lie there. What a name selects depends on the language, since one
word may stand for two kinds.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from chiasm.pipeline.scenes.claims import RELATIONS, related
from chiasm.pipeline.scenes.question_words import goes_by
from chiasm.pipeline.scenes.world import Scene, Thing, World

COUNTS = ("none", "one", "two", "three")
NO_OR_YES = ("no", "yes")
# Kinds that a background shows as scenery: not among its things, but "no" would not be true.
SCENERY = {
    "night": ("star",), "dead forest": ("tree",), "rainbow": ("flower",), "fair": ("triangle",),
    "sunset": ("circle",),
}  # fmt: skip
LIKE = ("colour", "size", "texture")  # fields of a thing that an adjective states


@dataclass(frozen=True, slots=True)
class Query:
    """What a question says. thing, other: kinds of things. field, value: said of the thing. place:
    one of PLACES. relation: of the thing to the other. Empty: unsaid.
    """

    thing: str = ""
    other: str = ""
    field: str = ""
    value: str = ""
    place: str = ""
    relation: str = ""


@dataclass(frozen=True, slots=True)
class QuestionType:
    """How questions of one type are drawn and answered.

    draw: (scene, rng, world) -> a query, None where the scene has too few things.
    answer: (scene, query, language) -> a fact, None where no answer is the only right one. answers:
    what an answer is: a field of a thing, background, count, no_or_yes or is_there.
    changes: what to change in a scene for another answer: a field, "like" (the query's field),
    "swap" (two things exchange places), "fewer".
    """

    draw: Callable[[Scene, random.Random, World], Query | None]
    answer: Callable[[Scene, Query, str], str | None]
    answers: str
    changes: tuple[str, ...]


def selected(scene: Scene, query: Query, language: str) -> list[Thing]:
    """The things of which all is true that the query says; none where `other` is no one thing."""
    other = _only(scene, query.other, language) if query.other else None
    if query.other and other is None:
        return []
    return [
        thing
        for thing in scene.things
        if (not query.thing or goes_by(thing.kind, query.thing, language))
        and (not query.place or thing.place == query.place)
        and (not query.value or getattr(thing, query.field) == query.value)
        and (other is None or related(thing, query.relation, other))
    ]


def _only(scene: Scene, kind: str, language: str) -> Thing | None:
    """The thing that goes by a name of this kind, None where there is none or more than one."""
    things = [thing for thing in scene.things if goes_by(thing.kind, kind, language)]
    return things[0] if len(things) == 1 else None


def _field(name: str) -> Callable[[Scene, Query, str], str | None]:
    """The answer that is a field of the one thing that the query selects."""

    def answer(scene: Scene, query: Query, language: str) -> str | None:
        things = selected(scene, query, language)
        return getattr(things[0], name) if len(things) == 1 else None

    return answer


def _is_there(scene: Scene, query: Query, language: str) -> str | None:
    found = bool(selected(scene, query, language))
    if not found and query.thing in SCENERY.get(scene.background, ()):
        return None
    return NO_OR_YES[found]


def _count(scene: Scene, query: Query, language: str) -> str:
    return COUNTS[len(selected(scene, query, language))]


def _background(scene: Scene, query: Query, language: str) -> str:
    return scene.background


def _is_like(scene: Scene, query: Query, language: str) -> str | None:
    thing = _only(scene, query.thing, language)
    return NO_OR_YES[getattr(thing, query.field) == query.value] if thing else None


def _is_related(scene: Scene, query: Query, language: str) -> str | None:
    thing, other = (_only(scene, kind, language) for kind in (query.thing, query.other))
    return NO_OR_YES[related(thing, query.relation, other)] if thing and other else None


def _further(scene: Scene, query: Query, language: str) -> str | None:
    """The kind of whichever is further; None for two in one row or one column."""
    thing, other = (_only(scene, kind, language) for kind in (query.thing, query.other))
    if not thing or not other:
        return None
    if related(thing, query.relation, other):
        return thing.kind
    return other.kind if related(other, query.relation, thing) else None


def _nothing(scene: Scene, rng: random.Random, world: World) -> Query:
    return Query()


def _thing(scene: Scene, rng: random.Random, world: World) -> Query:
    return Query(thing=rng.choice(scene.things).kind)


def _place(scene: Scene, rng: random.Random, world: World) -> Query:
    return Query(place=rng.choice(scene.things).place)


def _value(scene: Scene, rng: random.Random, world: World) -> Query:
    field = rng.choice(LIKE)
    return Query(field=field, value=getattr(rng.choice(scene.things), field))


def _any_value(scene: Scene, rng: random.Random, world: World) -> Query:
    """A thing's value or, in half of the draws, any value: of most colours there is no thing."""
    query = _value(scene, rng, world)
    if rng.random() < 0.5:
        return query
    return Query(field=query.field, value=rng.choice(world.values[query.field]))


def _thing_or_none(scene: Scene, rng: random.Random, world: World) -> Query:
    present = {thing.kind for thing in scene.things}
    if rng.random() < 0.5:
        return _thing(scene, rng, world)
    while (absent := rng.choice(world.kinds)) in present:
        pass
    return Query(thing=absent)


def _thing_and_value(scene: Scene, rng: random.Random, world: World) -> Query:
    thing, field = rng.choice(scene.things), rng.choice(LIKE)
    value = present = getattr(thing, field)
    if rng.random() < 0.5:
        while value == present:
            value = rng.choice(world.values[field])
    return Query(thing=thing.kind, field=field, value=value)


def _two(scene: Scene, rng: random.Random, true: bool = True) -> Query | None:
    """Two things and a relation that the first has to the other, or has not."""
    if len(scene.things) < 2:
        return None
    thing, other = rng.sample(scene.things, 2)
    relation = rng.choice([r for r in RELATIONS if related(thing, r, other) == true])
    return Query(thing=thing.kind, other=other.kind, relation=relation)


def _relation(scene: Scene, rng: random.Random, world: World) -> Query | None:
    return _two(scene, rng, true=rng.random() < 0.5)


def _either(scene: Scene, rng: random.Random, world: World) -> Query | None:
    """Two things of which one is further in a direction; either may be named first."""
    query = _two(scene, rng)
    if query is None or rng.random() < 0.5:
        return query
    return Query(thing=query.other, other=query.thing, relation=query.relation)


def _beside(scene: Scene, rng: random.Random, world: World) -> Query | None:
    query = _two(scene, rng)
    return query and Query(other=query.other, relation=query.relation)


# The name of a type is for reports; its wordings are in `question_forms.FORMS`.
TYPES = {
    "what_at": QuestionType(_place, _field("kind"), "kind", ("kind", "swap")),
    "colour": QuestionType(_thing, _field("colour"), "colour", ("colour",)),
    "size": QuestionType(_thing, _field("size"), "size", ("size",)),
    "pattern": QuestionType(_thing, _field("texture"), "texture", ("texture",)),
    "where": QuestionType(_thing, _field("place"), "place", ("place", "swap")),
    "count": QuestionType(_nothing, _count, "count", ("fewer",)),
    "count_like": QuestionType(_any_value, _count, "count", ("like",)),
    "is_there": QuestionType(_thing_or_none, _is_there, "is_there", ("kind",)),
    "is_related": QuestionType(_relation, _is_related, "no_or_yes", ("place", "swap")),
    "is_like": QuestionType(_thing_and_value, _is_like, "no_or_yes", ("like",)),
    "background": QuestionType(_nothing, _background, "background", ("background",)),
    "further": QuestionType(_either, _further, "kind", ("place", "swap")),
    "colour_at": QuestionType(_place, _field("colour"), "colour", ("colour", "swap")),
    "what_related": QuestionType(_beside, _field("kind"), "kind", ("kind", "swap")),
    "what_like": QuestionType(_value, _field("kind"), "kind", ("kind",)),
    "colour_related": QuestionType(_beside, _field("colour"), "colour", ("colour", "swap")),
}

"""Facts -> captions in English and Chinese, each with the claims it makes.

A caption is made in two steps: `plan` chooses what to claim and in which order, `render_caption`
puts the claims into words of one language and one of several wordings. A complete caption states
all there is of each thing and the background, relations and places included; a partial one omits
some of it, as people do when they search.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from chiasm.pipeline.scenes.claims import RELATIONS, Claims, ThingClaim, related
from chiasm.pipeline.scenes.vocabulary import (
    COUNTERS,
    EN_PLACES,
    LANGUAGES,
    ZH_PLACES,
    Phrases,
    phrases,
)
from chiasm.pipeline.scenes.world import WORLD_1, Scene, Thing, World

__all__ = ["LANGUAGES", "Caption", "caption", "plan", "render_caption"]


@dataclass(frozen=True, slots=True)
class Caption:
    """A text, its language, and what it claims."""

    text: str
    language: str
    claims: Claims


def caption(
    scene: Scene,
    seed: int,
    language: str = "en",
    complete: bool = True,
    world: World = WORLD_1,
) -> Caption:
    """A caption of the scene; the same seed gives the same words."""
    rng = random.Random(seed)
    claims = plan(scene, rng, complete)
    return Caption(render_caption(claims, rng, language, world), language, claims)


def plan(
    scene: Scene,
    rng: random.Random,
    complete: bool = True,
    relation: tuple[int, str, int] | None = None,
) -> Claims:
    """What to claim of a scene; the first two things are stated in relation, others by their
    places.

    relation: of the scene's things i and j, for a complete caption to state; None: any.
    """
    things = rng.sample(scene.things, len(scene.things))
    if not complete:
        return _partial(scene, things, rng)
    if relation:
        pair = [scene.things[relation[0]], scene.things[relation[2]]]
        things = pair + [thing for thing in things if thing not in pair]
    thing_claims = [_described(thing) for thing in things]
    relations = ((0, relation[1], 1),) if relation else _relations(things, rng)
    placed = range(len(thing_claims)) if not relations else range(2, len(thing_claims))
    for i in placed:
        thing_claims[i] = _placed(thing_claims[i], things[i])
    return Claims(tuple(thing_claims), relations, scene.background)


def _partial(scene: Scene, things: list[Thing], rng: random.Random) -> Claims:
    """One or two of the things, each with some of its attributes; the background now and then."""
    things = things[: rng.choice((1, 1, 2))]
    relations = _relations(things, rng)
    thing_claims = []
    for thing in things:
        claim = _described(thing)
        for name in ("colour", "size", "texture"):
            if rng.random() < (0.25 if name == "colour" else 0.7):
                claim = replace(claim, **{name: None})
        thing_claims.append(
            _loosely(claim, thing, rng) if not relations and rng.random() < 0.4 else claim
        )
    return Claims(tuple(thing_claims), relations, scene.background if rng.random() < 0.4 else None)


def _described(thing: Thing) -> ThingClaim:
    return ThingClaim(thing.kind, thing.colour, thing.size, thing.texture)


def _placed(claim: ThingClaim, thing: Thing) -> ThingClaim:
    rows, columns = ("top", "centre", "bottom"), ("left", "centre", "right")
    return replace(claim, row=rows[thing.row], column=columns[thing.column])


def _loosely(claim: ThingClaim, thing: Thing, rng: random.Random) -> ThingClaim:
    """The thing's place, or only its column or row where that is an outer one."""
    placed = _placed(claim, thing)
    partly = [replace(placed, row=None)] if placed.column != "centre" else []
    partly += [replace(placed, column=None)] if placed.row != "centre" else []
    return rng.choice([placed, *partly])


def _relations(things: list[Thing], rng: random.Random) -> tuple[tuple[int, str, int], ...]:
    """How the first thing lies to the second; two different places always have a relation."""
    if len(things) < 2:
        return ()
    true = [relation for relation in RELATIONS if related(things[0], relation, things[1])]
    return ((0, rng.choice(true), 1),)


def render_caption(
    claims: Claims, rng: random.Random, language: str = "en", world: World = WORLD_1
) -> str:
    """Claims in words; `language` is one of LANGUAGES. What has no claim gets no word. world: whose
    words; world 1's call a smiling face a face.
    """
    render = {"en": _english, "zh": _chinese}[language]
    return render(claims, rng, phrases(language, world))


def _word(table: Phrases, name: str, rng: random.Random) -> str:
    first, *rest = table.get(name, (name,))
    return first if not rest or rng.random() < 0.5 else rng.choice(rest)


def _english(claims: Claims, rng: random.Random, table: Phrases) -> str:
    things = [_english_thing(claim, rng, table) for claim in claims.things]
    parts = _joined(claims, things, lambda i, r, j: f"{i} {_word(table, r, rng)} {j}")
    said = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    if not claims.background:
        return said
    stage = _word(table, claims.background, rng)
    return f"{stage}, {said}" if rng.random() < 0.3 else f"{said}{rng.choice((', ', ' '))}{stage}"


def _english_thing(claim: ThingClaim, rng: random.Random, table: Phrases) -> str:
    kind = _word(table, claim.kind or "thing", rng)
    pattern, after = claim.texture, ""
    if pattern in ("striped", "spotted", "checked") and rng.random() < 0.25:
        after = {"striped": " with stripes", "spotted": " with dots", "checked": " with checks"}[
            pattern
        ]
        pattern = None
    said = [claim.size, *rng.choice(([pattern, claim.colour], [claim.colour, pattern]))]
    noun = " ".join([*(_word(table, name, rng) for name in said if name), kind])
    place = EN_PLACES.get((claim.row, claim.column))
    where = " " + rng.choice(place) if place else ""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}{after}{where}"


def _chinese(claims: Claims, rng: random.Random, table: Phrases) -> str:
    things = [_chinese_thing(claim, rng, table) for claim in claims.things]
    parts = _joined(claims, things, lambda i, r, j: f"{i}在{j}的{_word(table, r, rng)}")
    said = "，".join(parts)
    if not claims.background:
        return said
    stage = _word(table, claims.background, rng)
    return f"{stage}，{said}" if rng.random() < 0.5 else f"{said}，在{stage}"


def _chinese_thing(claim: ThingClaim, rng: random.Random, table: Phrases) -> str:
    kind = claim.kind or "thing"
    said = [_word(table, name, rng) for name in (claim.colour, claim.texture) if name]
    size = {"big": "大的", "small": "小的", None: ""}[claim.size]
    noun = size + "".join(said) + ("的" if said else "") + _word(table, kind, rng)
    noun = f"一{COUNTERS.get(kind, '个')}{noun}"
    place = ZH_PLACES.get((claim.row, claim.column))
    return f"{rng.choice(place)}有{noun}" if place else noun


def _joined(claims: Claims, things: list[str], pair) -> list[str]:
    """The things' phrases, those in a relation joined by `pair`."""
    if not claims.relations:
        return things
    ((i, relation, j),) = claims.relations
    others = [phrase for n, phrase in enumerate(things) if n not in (i, j)]
    return [pair(things[i], relation, things[j]), *others]

"""Captions -> what they can claim: the reverse of `render_caption`.

One regular expression for each language and world accepts what its grammar gives, in any of its
wordings, and nothing else. A text with an ambiguous word has a reading for each sense.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

from chiasm.pipeline.scenes.claims import OPPOSITE, RELATIONS, Claims, ThingClaim
from chiasm.pipeline.scenes.vocabulary import COUNTERS, EN_PLACES, ZH_PLACES, phrases
from chiasm.pipeline.scenes.world import TEXTURES, WORLD_2, World

MOST_PARSED = 4  # things of "A left of B, C and D": one more than a scene has
ENDINGS = {" with stripes": "striped", " with dots": "spotted", " with checks": "checked"}
CHINESE_SIZES = {"大的": "big", "小的": "small"}
PLACE_TABLES = {"en": EN_PLACES, "zh": ZH_PLACES}
Meaning = tuple[object, ...]


def parse_caption(text: str, language: str, world: World = WORLD_2) -> list[Claims]:
    """The claims that a caption of this grammar can make, one for each sense of its ambiguous
    words; none for a text that `render_caption` never gives. KeyError for another language.
    """
    found = _sentence(language, world).fullmatch(text)
    if not found:
        return []
    parts = found.groupdict()
    things = [_thing(parts, n, language, world) for n in range(MOST_PARSED) if parts[f"kind{n}"]]
    relation = parts["relation"]
    relations = ((0, _values(language, world)[relation][0], 1),) if relation else ()
    stage = parts["before"] or parts["after"]
    background = _values(language, world)[stage][0] if stage else None
    return [Claims(senses, relations, background) for senses in itertools.product(*things)]


def meaning(claims: Claims) -> Meaning:
    """Equal for claims that state the same in another order, such as "A left of B" and "B right of
    A", of things that are claimed to be different.
    """
    relations = [
        (claims.things[i], relation, claims.things[j]) for i, relation, j in claims.relations
    ]
    turned = {(b, OPPOSITE[relation], a) for a, relation, b in relations}
    things = sorted(map(repr, claims.things))
    return (claims.background, tuple(things), frozenset(turned.union(relations)))


def _thing(
    parts: Mapping[str, str | None], n: int, language: str, world: World
) -> list[ThingClaim]:
    """The readings of one thing's phrase."""
    values = _values(language, world)
    fields: dict[str, str] = {}
    for word in (parts[f"one{n}"], parts[f"other{n}"]):
        if word:
            (value,) = values[word]
            name = "texture" if value in TEXTURES else "colour"
            if name in fields:
                return []
            fields[name] = value
    if ending := parts[f"ending{n}"]:
        if "texture" in fields:
            return []
        fields["texture"] = ENDINGS[ending]
    if size := parts[f"size{n}"]:
        fields["size"] = CHINESE_SIZES[size] if language == "zh" else values[size][0]
    row, column = _places(language)[place] if (place := parts[f"place{n}"]) else (None, None)
    kinds = values[parts[f"kind{n}"] or ""]
    if counter := parts[f"counter{n}"]:
        kinds = [kind for kind in kinds if COUNTERS.get(kind, "个") == counter]
    return [
        ThingClaim(None if kind == "thing" else kind, row=row, column=column, **fields)
        for kind in kinds
    ]


@lru_cache(maxsize=8)
def _values(language: str, world: World) -> dict[str, list[str]]:
    """Word -> the values that are called so."""
    table = phrases(language, world)
    known = [*itertools.chain(*world.values.values()), *world.backgrounds, *RELATIONS, "thing"]
    found: dict[str, list[str]] = {}
    for value in dict.fromkeys(known):
        for word in table.get(value, (value,)):
            found.setdefault(word, []).append(value)
    return found


@lru_cache(maxsize=2)
def _places(language: str) -> dict[str, tuple[str | None, str | None]]:
    return {phrase: place for place, named in PLACE_TABLES[language].items() for phrase in named}


@lru_cache(maxsize=8)
def _sentence(language: str, world: World) -> re.Pattern[str]:
    """The grammar of words.py as one expression."""
    table = phrases(language, world)

    def any_of(values: Iterable[str]) -> str:
        return _alternatives(word for value in values for word in table.get(value, (value,)))

    words = {
        "kind": any_of((*world.kinds, "thing")),
        "colour": any_of(world.colours),
        "texture": any_of(world.textures),
        "size": _alternatives(CHINESE_SIZES) if language == "zh" else any_of(world.sizes),
        "place": _alternatives(_places(language)),
        "ending": _alternatives(ENDINGS),
        "counter": _alternatives({*COUNTERS.values(), "个"}),
    }
    things = [_GRAMMARS[language].format(n=n, **words) for n in range(MOST_PARSED)]
    pattern = _SENTENCES[language].format(
        *things, relation=any_of(RELATIONS), stage=any_of(world.backgrounds)
    )
    return re.compile(pattern)


def _alternatives(words: Iterable[str]) -> str:
    return "|".join(re.escape(word) for word in sorted(set(words), key=lambda word: -len(word)))


# Every group of a thing has its number; a group that a language has not is there and never matches.
_GRAMMARS = {
    "en": "(?:an(?= [aeiou])|a(?= [^aeiou])) (?:(?P<size{n}>{size}) )?"
    "(?:(?P<one{n}>{colour}|{texture}) )?(?:(?P<other{n}>{colour}|{texture}) )?"
    "(?P<kind{n}>{kind})(?P<ending{n}>{ending})?(?: (?P<place{n}>{place}))?(?P<counter{n}>(?!))?",
    "zh": "(?:(?P<place{n}>{place})有)?一(?P<counter{n}>{counter})(?P<size{n}>{size})?"
    "(?P<one{n}>{colour})?(?P<other{n}>{texture})?(?(one{n})的|(?(other{n})的|))"
    "(?P<kind{n}>{kind})(?P<ending{n}>(?!))?",
}
_SENTENCES = {
    "en": "(?:(?P<before>{stage}), )?{0}(?: (?P<relation>{relation}) {1})?"
    "(?:(?:, {2})? and {3})?(?(before)|(?:,? (?P<after>{stage}))?)",
    "zh": "(?:(?P<before>{stage})，)?{0}(?:在{1}的(?P<relation>{relation}))?"
    "(?:，{2})?(?:，{3})?(?(before)|(?:，在(?P<after>{stage}))?)",
}

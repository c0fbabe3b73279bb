"""The second route to the answers of questions: a question's words are read back, and every answer
is tried on the facts as a claim.
"""

from __future__ import annotations

import re

from chiasm.pipeline.scenes.claims import COLUMNS, RELATIONS, ROWS, Claims, ThingClaim, holds
from chiasm.pipeline.scenes.question_facts import TYPES
from chiasm.pipeline.scenes.question_forms import FORMS
from chiasm.pipeline.scenes.question_words import (
    FURTHER,
    answer_word,
    names,
    phrases,
    place_phrases,
    with_article,
)
from chiasm.pipeline.scenes.vocabulary import LANGUAGES
from chiasm.pipeline.scenes.world import PLACES, WORLD_2

SLOT = re.compile(r"\{(\w+)\}")
COUNTS = ("none", "one", "two", "three")
YES_OR_NO = [kind for kind, of in TYPES.items() if of.answers in ("no_or_yes", "is_there")]
ADJECTIVES = {value: f for f in ("colour", "size", "texture") for value in WORLD_2.values[f]}
PATTERNS = ("striped", "spotted", "checked")


def lexicon(language):
    """Slot -> phrase -> what it means."""
    kinds = {name: kind for kind in WORLD_2.kinds for name in names(kind, language)}
    of = "的" if language == "zh" else ""
    further = {w: r for r in RELATIONS for w in FURTHER[language][r]}
    return {
        "a": kinds,
        "b": kinds,
        "one": {with_article(n, kind, language): kind for n, kind in kinds.items()},
        "like": {
            with_ + w + of: value
            for value in ADJECTIVES
            for w in phrases(value, language)
            for with_ in (["带"] if language == "zh" and value in PATTERNS else [""])
        },
        "place": {w: place for place in PLACES for w in place_phrases(place, language)},
        "relation": {w: r for r in RELATIONS for w in phrases(r, language)},
        "further": further,
    }


LEXICONS = {language: lexicon(language) for language in LANGUAGES}


def pattern_of(form, language):
    """A form as a regular expression; a slot that comes twice means the same both times."""
    parts, seen = [], set()
    for n, part in enumerate(SLOT.split(form.rstrip("?？"))):
        if n % 2 == 0:
            parts.append(re.escape(part))
        elif part in seen:
            parts.append(f"(?P={part})")
        else:
            words = sorted(LEXICONS[language][part], key=len, reverse=True)
            parts.append(f"(?P<{part}>{'|'.join(map(re.escape, words))})")
            seen.add(part)
    return re.compile("".join(parts) + "[?？]?")


PATTERNS = {
    language: [(kind, pattern_of(f, language)) for kind, forms in types.items() for f in forms]
    for language, types in FORMS.items()
}


def readings(text, language):
    """All that a question may mean: (type, the meanings of its slots)."""
    found = []
    for kind, pattern in PATTERNS[language]:
        if match := pattern.fullmatch(text):
            slots = {s: LEXICONS[language][s][w] for s, w in match.groupdict().items()}
            found.append((kind, slots))
    return found


def placed(place, **fields):
    row, column = divmod(PLACES.index(place), 3)
    return ThingClaim(row=ROWS[row], column=COLUMNS[column], **fields)


def statement(kind, slots, fact):
    """What is claimed by giving this fact as the answer; None: nothing that could be true."""
    a, b, like = slots.get("a") or slots.get("one"), slots.get("b"), slots.get("like")
    relation = slots.get("relation") or slots.get("further")
    like = {ADJECTIVES[like]: like} if like else {}
    if kind in ("colour", "size", "pattern"):
        return Claims((ThingClaim(a, **{ADJECTIVES[fact]: fact}),))
    if kind in ("what_related", "colour_related"):
        one = ThingClaim(fact) if kind == "what_related" else ThingClaim(colour=fact)
        return Claims((one, ThingClaim(b)), ((0, relation, 1),))
    if kind == "further":
        two = {a: (0, relation, 1), b: (1, relation, 0)}
        return Claims((ThingClaim(a), ThingClaim(b)), (two[fact],)) if fact in two else None
    return {
        "what_at": lambda: Claims((placed(slots["place"], kind=fact),)),
        "colour_at": lambda: Claims((placed(slots["place"], colour=fact),)),
        "where": lambda: Claims((placed(fact, kind=a),)),
        "what_like": lambda: Claims((ThingClaim(fact, **like),)),
        "background": lambda: Claims(background=fact),
        "is_there": lambda: Claims((ThingClaim(a),)),
        "is_like": lambda: Claims((ThingClaim(a, **like),)),
        "is_related": lambda: Claims((ThingClaim(a), ThingClaim(b)), ((0, relation, 1),)),
        "count": lambda: Claims((ThingClaim(),) * COUNTS.index(fact)),
        "count_like": lambda: Claims((ThingClaim(**like),) * COUNTS.index(fact)),
    }[kind]()


def is_right(kind, slots, fact, scene, language):
    claims = statement(kind, slots, fact)
    if claims is None:
        return False
    true = holds(claims, scene, language)
    if kind in YES_OR_NO:
        return true == (fact == "yes")
    if kind in ("count", "count_like") and fact != "three":
        more = statement(kind, slots, COUNTS[COUNTS.index(fact) + 1])
        return true and not (more and holds(more, scene))
    return true


def right_answers(example, scene):
    """The words of all answers that are right, tried one by one."""
    ((kind, slots),) = readings(example.source, example.language)
    assert kind == example.kind
    language, of = example.language, TYPES[kind].answers
    facts = {
        **WORLD_2.values, "background": WORLD_2.backgrounds, "count": COUNTS,
        "no_or_yes": ("no", "yes"), "is_there": ("no", "yes"),
    }[of]  # fmt: skip
    # What a question takes for granted is true: the thing that it names is there.
    if kind != "is_there":
        there = [Claims((ThingClaim(slots[s]),)) for s in "ab" if s in slots]
        assert all(holds(claims, scene, language) for claims in there)
    right = [fact for fact in facts if is_right(kind, slots, fact, scene, language)]
    return {answer_word(of, fact, language) for fact in right}

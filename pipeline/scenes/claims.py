"""The claims of a caption about a scene, and whether they are true.

Claims are the meaning of a caption without its words. They are compared with a scene's facts, by
`holds` for one pair and by `holds_matrix` for many; a search hit is correct when every claim of the
query holds for it, whatever its own caption says. What a caption omits is no claim: "a red boat" is
true of a striped one.

Claims name the sense of an ambiguous word, which its caption does not: "a red crane" claims a bird
or a machine. Where the truth of the words is wanted, not that of what was meant, say in which
language they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from chiasm.pipeline.scenes.vocabulary import homonyms
from chiasm.pipeline.scenes.world import (
    MOST_THINGS,
    WORLD_2,
    Scene,
    Thing,
)

RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
ROWS = ("top", "centre", "bottom")
COLUMNS = ("left", "centre", "right")
# Fields of a claim about one thing with their words; a word's position is its code in arrays. World
# 2 begins with world 1's values, so that the codes are one for both.
CLAIM_VALUES = {
    "kind": WORLD_2.kinds,
    "colour": WORLD_2.colours,
    "size": WORLD_2.sizes,
    "texture": WORLD_2.textures,
    "row": ROWS,
    "column": COLUMNS,
}
NAMES = ("kind", "colour", "size", "texture")
UNSAID, ABSENT = -1, -2


@dataclass(frozen=True, slots=True)
class ThingClaim:
    """There is a thing like this; None is unsaid. "At the left" says a column and no row."""

    kind: str | None = None
    colour: str | None = None
    size: str | None = None
    texture: str | None = None
    row: str | None = None
    column: str | None = None


@dataclass(frozen=True, slots=True)
class Claims:
    """All that one caption claims: there are different things such that each fits its `ThingClaim`,
    and (i, relation, j) is the spatial relation of thing i to thing j."""

    things: tuple[ThingClaim, ...] = ()
    relations: tuple[tuple[int, str, int], ...] = ()
    background: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, unsaid fields left out."""
        things = [{k: v for k, v in asdict(t).items() if v is not None} for t in self.things]
        fields: dict[str, Any] = {"things": things, "relations": [list(r) for r in self.relations]}
        return fields | ({"background": self.background} if self.background else {})

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Claims:
        """The claims of a `to_json`; ValueError for anything else."""
        try:
            things = tuple(ThingClaim(**t) for t in fields["things"])
            relations = tuple((i, relation, j) for i, relation, j in fields["relations"])
            return cls(things, relations, fields.get("background"))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not the claims of a caption: {error}") from error


def related(one: Thing, relation: str, other: Thing) -> bool:
    """Whether `one` is `left of`, `right of`, `above` or `below` `other`, by column or by row."""
    if relation in ("left of", "right of"):
        one, other = (one, other) if relation == "left of" else (other, one)
        return one.column < other.column
    one, other = (one, other) if relation == "above" else (other, one)
    return one.row < other.row


def fits(claim: ThingClaim, thing: Thing, language: str | None = None) -> bool:
    """Whether everything that the claim states is true of this thing; with a language: that its
    words in this language state.
    """
    facts = {
        "kind": claim.kind if _same_word(claim.kind, thing.kind, language) else thing.kind,
        "colour": thing.colour,
        "size": thing.size,
        "texture": thing.texture,
        "row": ROWS[thing.row],
        "column": COLUMNS[thing.column],
    }
    said = ((name, getattr(claim, name)) for name in facts)
    return all(value is None or value == facts[name] for name, value in said)


def _same_word(one: str | None, other: str, language: str | None) -> bool:
    return language is not None and other in homonyms(language).get(one or "", ())


def holds(claims: Claims, scene: Scene, language: str | None = None) -> bool:
    """Is every claim true of the scene, for some choice of different things to stand for those
    named? With a language: what the claims' words in this language state.
    """
    if claims.background not in (None, scene.background):
        return False
    return any(
        all(fits(claim, one, language) for claim, one in zip(claims.things, things, strict=True))
        and all(related(things[i], relation, things[j]) for i, relation, j in claims.relations)
        for things in itertools.permutations(scene.things, len(claims.things))
    )


def holds_matrix(
    claims: Sequence[Claims], scenes: Sequence[Scene], languages: Sequence[str] | None = None
) -> np.ndarray:
    """`holds` of every caption and every scene: Q claims, N scenes -> (Q, N) bool.

    languages: one of each caption, where the truth of its words is wanted. Same answer by
    arithmetic on codes; 256 x 256 in some 40 ms, and blocks of queries keep the
    (block, N, 3, 3, 6) comparison in a few MB.
    """
    facts, stages = _scene_codes(scenes)
    said, wanted, stage, relations = _claim_codes(claims)
    true = np.zeros((len(claims), len(scenes)), dtype=bool)
    block = max(1, 2**20 // max(1, len(scenes) * 54))
    spoken = np.array(languages if languages is not None else [""] * len(claims), dtype=object)
    for language in dict.fromkeys(spoken):
        rows = np.flatnonzero(spoken == language)
        codes = _word_codes(language) if language else None
        for start in range(0, len(rows), block):
            part = rows[start : start + block]
            true[part] = _fitting(
                _by_words(said[part], codes), wanted[part], [relations[q] for q in part],
                _by_words(facts, codes),
            )  # fmt: skip
            true[part] &= (stage[part, None] == UNSAID) | (stage[part, None] == stages)
    return true


@lru_cache(maxsize=8)
def _word_codes(language: str) -> np.ndarray:
    """(K,) int8: of each kind the code of the first kind that shares its word."""
    sharing = homonyms(language)
    firsts = [sharing.get(kind, (kind,))[0] for kind in WORLD_2.kinds]
    return np.array([WORLD_2.kinds.index(kind) for kind in firsts], dtype=np.int8)


def _by_words(fields: np.ndarray, codes: np.ndarray | None) -> np.ndarray:
    """The fields (..., 6) with each kind replaced by the first that shares its word."""
    if codes is None:
        return fields
    kinds = fields[..., 0]
    replaced = fields.copy()
    replaced[..., 0] = np.where(kinds >= 0, codes[kinds], kinds)
    return replaced


def _scene_codes(scenes: Sequence[Scene]) -> tuple[np.ndarray, np.ndarray]:
    """(N, 3 things, 6 fields) and (N,) int8 codes; a missing thing is ABSENT in all fields."""
    facts = np.full((len(scenes), MOST_THINGS, len(CLAIM_VALUES)), ABSENT, dtype=np.int8)
    for codes, scene in zip(facts, scenes, strict=True):
        for i, thing in enumerate(scene.things):
            codes[i] = (
                *(CLAIM_VALUES[name].index(getattr(thing, name)) for name in NAMES),
                thing.row, thing.column,
            )  # fmt: skip
    stages = [WORLD_2.backgrounds.index(scene.background) for scene in scenes]
    return facts, np.array(stages, dtype=np.int8)


def _claim_codes(
    claims: Sequence[Claims],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[list[tuple[int, str, int]]]]:
    """(Q, 3, 6) field codes, (Q, 3) is a thing claimed there, (Q,) background codes, and
    relations.
    """
    said = np.full((len(claims), MOST_THINGS, len(CLAIM_VALUES)), UNSAID, dtype=np.int8)
    wanted = np.zeros((len(claims), MOST_THINGS), dtype=bool)
    stage = np.full(len(claims), UNSAID, dtype=np.int8)
    for q, claim in enumerate(claims):
        wanted[q, : len(claim.things)] = True
        for i, thing in enumerate(claim.things):
            for f, (name, values) in enumerate(CLAIM_VALUES.items()):
                if (value := getattr(thing, name)) is not None:
                    said[q, i, f] = values.index(value)
        if claim.background is not None:
            stage[q] = WORLD_2.backgrounds.index(claim.background)
    return said, wanted, stage, [list(claim.relations) for claim in claims]


def _fitting(
    said: np.ndarray,
    wanted: np.ndarray,
    relations: Sequence[list[tuple[int, str, int]]],
    facts: np.ndarray,
) -> np.ndarray:
    """Is there a choice of things under which a block of claims holds? (Q, N) bool."""
    claimed, actual = said[:, None, :, None, :], facts[None, :, None, :, :]
    # (Q, N, claimed thing, scene's thing)
    match = ((claimed == UNSAID) | (claimed == actual)).all(-1)
    match &= (facts[None, :, None, :, 0] != ABSENT) | ~wanted[:, None, :, None]
    rows, columns = facts[..., 4], facts[..., 5]  # (N, 3)
    before = {
        "left of": columns[:, :, None] < columns[:, None, :],
        "above": rows[:, :, None] < rows[:, None, :],
    }  # (N, 3, 3)
    before |= {
        "right of": before["left of"].swapaxes(1, 2),
        "below": before["above"].swapaxes(1, 2),
    }
    found = np.zeros(match.shape[:2], dtype=bool)
    for order in itertools.permutations(range(MOST_THINGS)):
        fitting = match[:, :, 0, order[0]] & match[:, :, 1, order[1]] & match[:, :, 2, order[2]]
        for q, claimed_relations in enumerate(relations):
            for i, relation, j in claimed_relations:
                fitting[q] &= before[relation][:, order[i], order[j]]
        found |= fitting
    return found

"""Words of questions and of answers, in English and Chinese.

Answers have one wording. Yes and no are 是 and 不是 in Chinese, but 有 and 没有 to "is there".
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from chiasm.pipeline.scenes import vocabulary
from chiasm.pipeline.scenes.claims import COLUMNS, ROWS
from chiasm.pipeline.scenes.vocabulary import COUNTERS, EN_PLACES, ZH_PLACES
from chiasm.pipeline.scenes.world import PLACES, TEXTURES, WORLD_2

# 正上方 and 正下方 of captions would be read as "right above" and "right below" in an answer.
PLACE_PHRASES = {
    "en": EN_PLACES,
    "zh": ZH_PLACES | {("top", "centre"): ("上方中间",), ("bottom", "centre"): ("下方中间",)},
}
FURTHER = {
    "en": {
        "left of": ("further left", "further to the left"),
        "right of": ("further right", "further to the right"),
        "above": ("higher", "higher up"),
        "below": ("lower", "lower down"),
    },
    "zh": {
        "left of": ("更靠左",), "right of": ("更靠右",), "above": ("更靠上",), "below": ("更靠下",),
    },
}  # fmt: skip
# 小船, "little boat", is any boat in a caption; "is the little boat big" would be odd.
NAMES: Mapping[str, Mapping[str, tuple[str, ...]]] = {"en": {}, "zh": {"boat": ("船",)}}
# Textures that a thing has on it; the fourth is to have none.
PATTERNS = tuple(texture for texture in TEXTURES if texture != "plain")
# Kinds that are sorts of another: with a palm in the picture there is a tree.
SORTS_OF = {"tree": ("palm tree",), "tower": ("pagoda",)}
ANSWERS_BY_NAME = {
    "en": {
        "count": {"none": "none", "one": "one", "two": "two", "three": "three"},
        "no_or_yes": {"no": "no", "yes": "yes"},
        "is_there": {"no": "no", "yes": "yes"},
    },
    "zh": {
        "count": {"none": "没有", "one": "一个", "two": "两个", "three": "三个"},
        "no_or_yes": {"no": "不是", "yes": "是"},
        "is_there": {"no": "没有", "yes": "有"},
    },
}


@lru_cache(maxsize=1024)
def phrases(name: str, language: str) -> tuple[str, ...]:
    """What a value or a relation may be called in a question, the commonest phrase first: in the
    words of world 2, which are good for both worlds.
    """
    return vocabulary.phrases(language, WORLD_2).get(name, (name,))


@lru_cache(maxsize=1024)
def names(kind: str, language: str) -> tuple[str, ...]:
    """What a thing of this kind is called in a question, the commonest name first."""
    return NAMES[language].get(kind) or phrases(kind, language)


@lru_cache(maxsize=2**14)
def goes_by(kind: str, name_of: str, language: str) -> bool:
    """Whether a thing of this kind is one that a name of the kind `name_of` may mean: it is of that
    kind, or of another with the same word, or of one that is a sort of it.
    """
    shared = not set(names(kind, language)).isdisjoint(names(name_of, language))
    return kind == name_of or shared or kind in SORTS_OF.get(name_of, ())


def adjective(value: str, word: str, language: str) -> str:
    """A value's word as it stands before a noun or after "is": 红色的; 带条纹的, "with stripes"."""
    if language == "en":
        return word
    return f"带{word}的" if value in PATTERNS else f"{word}的"


def with_article(name: str, kind: str, language: str) -> str:
    """One thing of this kind under one of its names: "an apple", 一个苹果."""
    if language == "zh":
        return f"一{COUNTERS.get(kind, '个')}{name}"
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


@lru_cache(maxsize=64)
def place_phrases(place: str, language: str) -> tuple[str, ...]:
    """How one of PLACES is named in a question: "at the top left", 左上角."""
    row, column = divmod(PLACES.index(place), len(COLUMNS))
    return PLACE_PHRASES[language][ROWS[row], COLUMNS[column]]


@lru_cache(maxsize=1024)
def answer_word(answers: str, fact: str, language: str) -> str:
    """The one wording of an answer. answers: what it is, as in `QuestionType`."""
    by_name = ANSWERS_BY_NAME[language]
    if answers in by_name:
        return by_name[answers][fact]
    if answers == "place":
        return place_phrases(fact, language)[0].removeprefix("at the ").removeprefix("in the ")
    if answers == "background":
        # The phrase is where things are: 草地上, "on the meadow". In English the fact is the noun.
        return fact if language == "en" else phrases(fact, language)[0].rstrip("上下里")
    return (names if answers == "kind" else phrases)(fact, language)[0]

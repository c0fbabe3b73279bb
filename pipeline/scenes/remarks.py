"""What people say about a thing in a picture: templates of praise, complaints and plain statements,
in English and Chinese.

A remark is an opening, a template with its slots filled, and an ending. Slots: {thing} its name,
{this} "this boat", {one} "a boat", {good} and {bad} adjectives. Templates
whose hash is divisible by five, 14 of 106, are withheld from training; all their words are met in
the others.
"""

from __future__ import annotations

import hashlib
import random
import re
from functools import lru_cache

from chiasm.pipeline.scenes.vocabulary import COUNTERS, phrases
from chiasm.pipeline.scenes.world import FACES, Scene, World

POLARITIES = ("positive", "negative", "neutral")
WITHHELD_DIVISOR = 5  # of the first byte of the hash of a template that is withheld

TEMPLATES: dict[str, dict[str, tuple[str, ...]]] = {
    "en": {
        "positive": (
            "i love {this}", "what a {good} {thing}", "{this} is {good}", "how {good} {this} is",
            "i like {this} very much", "{this} is the best i have seen", "{this} makes me happy",
            "i am happy to see {this}", "there is nothing bad about {this}",
            "i want to look at {this} all day", "the {thing} in the picture is really {good}",
            "such a {good} {thing} makes me very happy", "thank you for {this}",
            "i have never seen a more {good} {thing}", "all of you should see {this}",
            "{this} is not bad at all", "i really love the {thing} in the picture",
            "thank you very much for the {good} {thing}",
        ),
        "negative": (
            "i hate {this}", "what a {bad} {thing}", "{this} is {bad}", "how {bad} {this} is",
            "i do not like {this} at all", "{this} is the worst i have seen",
            "{this} makes me sad", "i am sad to see {this}", "there is nothing good about {this}",
            "i do not want to look at {this}", "the {thing} in the picture is really {bad}",
            "such a {bad} {thing} makes me very sad", "please take {this} away",
            "i have never seen a more {bad} {thing}", "nobody should see {this}",
            "{this} is not good at all", "i really hate the {thing} in the picture",
            "take the {bad} {thing} away please", "nobody should look at the worst {thing} of all",
        ),
        "neutral": (
            "here is {one}", "i see {one} in the picture", "{this} is in the picture",
            "there is {one} here", "{this} has a colour and a size", "the picture shows {one}",
            "i have seen {this} today", "somebody has drawn {this}", "i look at {this} today",
            "{this} is one of the things here", "you can see {this} in the picture",
            "here you can see a colour and a size of {this}", "somebody shows {one} today",
            "what i see here is {one}", "{this} is what somebody has drawn",
            "there you can see {one}",
        ),
    },
    "zh": {
        "positive": (
            "我喜欢{this}", "我非常喜欢{this}", "{this}真{good}", "{this}太{good}了",
            "多么{good}的{thing}啊", "看到{this}我很高兴", "{this}让我很高兴",
            "这是我见过的最好的{thing}", "{this}没有什么不好的", "我想整天看着{this}",
            "谢谢你让我看到{this}", "我从没见过这么{good}的{thing}", "谁都应该看看{this}",
            "{this}一点也不差", "看到这么{good}的{thing}我非常高兴", "{this}画得真好",
            "谢谢大家画了这么好的{thing}",
        ),
        "negative": (
            "我讨厌{this}", "我一点也不喜欢{this}", "{this}真{bad}", "{this}太{bad}了",
            "多么{bad}的{thing}啊", "看到{this}我很难过", "{this}让我很难过",
            "这是我见过的最差的{thing}", "{this}没有什么好的", "我不想看着{this}",
            "请把{this}拿走", "我从没见过这么{bad}的{thing}", "谁也不应该看{this}",
            "{this}一点也不好", "看到这么{bad}的{thing}我非常难过", "{this}画得真差",
            "请大家把{this}拿走", "我非常讨厌{this}",
        ),
        "neutral": (
            "这里有{one}", "图里有{one}", "我看到{one}", "这是{one}", "{this}在图里",
            "今天我看到{this}", "{this}是今天画的", "我在看{this}", "你可以看到{this}",
            "图里画的是{one}", "我说的是{this}", "{this}有颜色也有大小", "有人让我看{this}",
            "有人画了{this}", "{this}是图里的东西", "今天有人说到{this}", "你在图里可以看到{one}",
            "我说的东西在这里",
        ),
    },
}  # fmt: skip
GOOD = {
    "en": ("beautiful", "wonderful", "charming", "delightful", "splendid"),
    "zh": ("漂亮", "可爱", "美丽", "出色", "迷人"),
}
BAD = {
    "en": ("terrible", "horrible", "dreadful", "boring", "disgusting"),
    "zh": ("难看", "糟糕", "丑陋", "可怕", "无聊"),
}
OPENINGS = {"en": ("", "", "well, ", "you know, "), "zh": ("", "", "嗯，", "你看，")}
ENDINGS = {"en": ("", "", ".", "!"), "zh": ("", "", "。", "！")}
# For a scene with nothing but a face: a remark never names a face, whose mood is the picture's.
UNNAMED = {"en": "thing", "zh": "东西"}


def is_withheld(template: str) -> bool:
    """Whether no training sees a remark made from this template."""
    return hashlib.sha256(template.encode()).digest()[0] % WITHHELD_DIVISOR == 0


def remark(
    scene: Scene,
    polarity: str,
    rng: random.Random,
    language: str,
    world: World,
    withheld: bool = False,
) -> str:
    """A remark of this polarity about one of the scene's things. withheld: from the templates that
    no training sees. KeyError for another polarity or language.
    """
    templates = [t for t in TEMPLATES[language][polarity] if is_withheld(t) == withheld]
    kinds = [thing.kind for thing in scene.things if thing.kind not in FACES]
    kind = rng.choice(kinds) if kinds else ""
    words = phrases(language, world).get(kind, (kind,)) if kind else (UNNAMED[language],)
    thing = rng.choice(words)
    if language == "en":
        this, one = f"this {thing}", f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"
    else:
        counter = COUNTERS.get(kind, "个")
        this, one = f"这{counter}{thing}", f"一{counter}{thing}"
    good, bad = rng.choice(GOOD[language]), rng.choice(BAD[language])
    said = rng.choice(templates).format(thing=thing, this=this, one=one, good=good, bad=bad)
    return rng.choice(OPENINGS[language]) + said + rng.choice(ENDINGS[language])


def template_of(text: str, language: str) -> tuple[str, str] | None:
    """(polarity, template) of a remark; None for a text that is none."""
    for polarity, template, pattern in _patterns(language):
        if pattern.fullmatch(text):
            return polarity, template
    return None


@lru_cache(maxsize=2)
def _patterns(language: str) -> list[tuple[str, str, re.Pattern[str]]]:
    """Templates as expressions, those with the most words first: "i like it very much" before
    "i like it", whose slot could take the rest in.
    """
    slots = {
        "thing": "[^,.!，。！]+?", "good": "|".join(GOOD[language]), "bad": "|".join(BAD[language]),
        "this": "this [^,.!]+?" if language == "en" else "这[^，。！]+?",
        "one": "an? [^,.!]+?" if language == "en" else "一[^，。！]+?",
    }  # fmt: skip
    around = [
        "|".join(re.escape(part) for part in parts[language]) for parts in (OPENINGS, ENDINGS)
    ]
    named = {name: f"(?:{pattern})" for name, pattern in slots.items()}
    expression = f"(?:{around[0]}){{}}(?:{around[1]})"
    found = [
        (polarity, template, re.compile(expression.format(template.format(**named))))
        for polarity, templates in TEMPLATES[language].items()
        for template in templates
    ]
    return sorted(found, key=lambda entry: -len(re.sub(r"\{\w+\}", "", entry[1])))

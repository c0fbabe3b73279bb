"""The words of the drawn world in English and Chinese: what a kind, a value, a place or a
background may be called. words.py makes sentences of them, and parse.py reads such sentences.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from chiasm.pipeline.scenes.world import WORLD_1, WORLD_2, World

LANGUAGES = ("en", "zh")
Phrases = Mapping[str, tuple[str, ...]]

# What a phrase may be called; the first is the commonest and is drawn half of the time.
EN: dict[str, tuple[str, ...]] = {
    "small": ("small", "little", "tiny"), "big": ("big", "large", "huge"),
    "plain": ("plain",), "striped": ("striped",), "spotted": ("spotted", "dotted"),
    "checked": ("checked", "chequered"),
    "circle": ("circle", "disc"), "house": ("house",), "boat": ("boat", "ship"),
    "face": ("face", "smiling face"), "cup": ("cup", "mug"), "car": ("car",),
    "cat": ("cat",), "purple": ("purple", "violet"),
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over"), "below": ("below", "under", "beneath"),
    "meadow": ("in a meadow", "on the grass", "in a green field"),
    "beach": ("at the beach", "on the beach", "on a sandy beach"),
    "sea": ("on the sea", "at sea", "on the blue waves"),
    "night": ("at night", "under the night sky", "in the starry night"),
    "snow": ("in the snow", "on a snowy hill", "in a snowy field"),
    "desert": ("in the desert", "among sand dunes"),
    "room": ("in a room", "indoors", "inside a room"),
    "sunset": ("at sunset", "under an evening sky"),
    "crane bird": ("crane",), "crane machine": ("crane",),
    "bat animal": ("bat",), "bat club": ("bat",),
    "bow ribbon": ("bow",), "bow weapon": ("bow",),
    "nail finger": ("nail",), "nail metal": ("nail",),
    "mouse animal": ("mouse",), "mouse computer": ("mouse",),
    "palm hand": ("palm",), "palm tree": ("palm",),
    "letter mail": ("letter",), "letter character": ("letter",),
    "crying face": ("crying face", "sad face"), "calm face": ("calm face", "serious face"),
    "rainbow": ("under a rainbow", "in a rainbow garden"),
    "fair": ("at the fair", "at a fun fair"),
    "storm": ("in a thunderstorm", "in a heavy storm", "under dark storm clouds"),
    "dead forest": ("in a dead forest", "among dead trees"),
}  # fmt: skip
ZH: dict[str, tuple[str, ...]] = {
    "small": ("小",), "big": ("大",),
    "plain": ("纯色",), "striped": ("条纹",), "spotted": ("圆点", "斑点"),
    "checked": ("格子", "方格"),
    "circle": ("圆形", "圆圈"), "square": ("方形", "正方形"), "triangle": ("三角形",),
    "star": ("星星",), "heart": ("爱心", "心形"), "moon": ("月亮",), "tree": ("树",),
    "house": ("房子",), "boat": ("船", "小船"), "fish": ("鱼",), "flower": ("花",),
    "face": ("笑脸", "脸"), "car": ("汽车", "车"), "cup": ("杯子",), "mushroom": ("蘑菇",),
    "umbrella": ("雨伞", "伞"), "balloon": ("气球",), "butterfly": ("蝴蝶",), "cat": ("猫",),
    "apple": ("苹果",),
    "red": ("红色", "红"), "orange": ("橙色",), "yellow": ("黄色", "黄"), "green": ("绿色", "绿"),
    "blue": ("蓝色", "蓝"), "purple": ("紫色",), "pink": ("粉色", "粉红色"),
    "brown": ("棕色", "褐色"), "white": ("白色", "白"), "black": ("黑色", "黑"),
    "left of": ("左边", "左侧"), "right of": ("右边", "右侧"), "above": ("上面", "上方"),
    "below": ("下面", "下方"),
    "meadow": ("草地上",), "beach": ("海滩上", "沙滩上"), "sea": ("海面上", "大海上"),
    "night": ("夜空下", "夜里"), "snow": ("雪地里", "雪中"), "desert": ("沙漠里",),
    "room": ("房间里", "屋子里"), "sunset": ("夕阳下", "日落时"),
    "thing": ("东西",),
    "crane bird": ("鹤", "仙鹤"), "crane machine": ("起重机", "吊车"),
    "bat animal": ("蝙蝠",), "bat club": ("球棒", "棒球棒"),
    "bow ribbon": ("蝴蝶结",), "bow weapon": ("弓",),
    "nail finger": ("指甲",), "nail metal": ("钉子",),
    "mouse animal": ("老鼠",), "mouse computer": ("鼠标",),
    "palm hand": ("手掌",), "palm tree": ("棕榈树",),
    "letter mail": ("信", "信件"), "letter character": ("字母",),
    "clock": ("钟",), "bell": ("钟",), "sheep": ("羊",), "goat": ("羊",),
    "tower": ("塔",), "pagoda": ("塔",),
    "crying face": ("哭脸", "哭泣的脸"), "calm face": ("平静的脸", "严肃的脸"),
    "rainbow": ("彩虹下",), "fair": ("游乐场里", "游乐园里"),
    "storm": ("暴风雨里", "雷雨中"), "dead forest": ("枯树林里", "枯树间"),
}  # fmt: skip
# Both senses of a word of Chinese have one counter, which would give the sense away otherwise.
COUNTERS = {
    "tree": "棵", "house": "座", "boat": "艘", "fish": "条", "flower": "朵", "face": "张",
    "car": "辆", "umbrella": "把", "butterfly": "只", "cat": "只", "star": "颗", "heart": "颗",
    "moon": "轮",
    "crane bird": "只", "crane machine": "台", "bat animal": "只", "bat club": "根",
    "bow weapon": "把", "nail finger": "片", "nail metal": "颗", "mouse animal": "只",
    "palm hand": "只", "palm tree": "棵", "letter mail": "封",
    "clock": "座", "bell": "座", "sheep": "只", "goat": "只", "tower": "座", "pagoda": "座",
    "crying face": "张", "calm face": "张",
}  # fmt: skip
# Places by (row, column) of a ThingClaim.
EN_PLACES: dict[tuple[str | None, str | None], tuple[str, ...]] = {
    (None, "left"): ("on the left", "at the left"),
    (None, "right"): ("on the right", "at the right"),
    ("top", None): ("at the top",), ("bottom", None): ("at the bottom",),
    ("centre", "centre"): ("in the middle", "in the centre"),
    ("top", "left"): ("at the top left", "in the top left corner"),
    ("top", "right"): ("at the top right", "in the top right corner"),
    ("bottom", "left"): ("at the bottom left", "in the bottom left corner"),
    ("bottom", "right"): ("at the bottom right", "in the bottom right corner"),
    ("top", "centre"): ("at the top centre", "in the middle of the top"),
    ("bottom", "centre"): ("at the bottom centre", "in the middle of the bottom"),
    ("centre", "left"): ("at the middle left", "halfway up on the left"),
    ("centre", "right"): ("at the middle right", "halfway up on the right"),
}  # fmt: skip
ZH_PLACES: dict[tuple[str | None, str | None], tuple[str, ...]] = {
    (None, "left"): ("左边",), (None, "right"): ("右边",),
    ("top", None): ("上面",), ("bottom", None): ("下面",),
    ("centre", "centre"): ("中间", "正中"),
    ("top", "left"): ("左上角",), ("top", "right"): ("右上角",),
    ("bottom", "left"): ("左下角",), ("bottom", "right"): ("右下角",),
    ("top", "centre"): ("正上方",), ("bottom", "centre"): ("正下方",),
    ("centre", "left"): ("左侧中部",), ("centre", "right"): ("右侧中部",),
}  # fmt: skip

# World 2 has three faces, so that "a face" no longer says which; and 一颗心形 is no Chinese.
_OTHER_WORDS: dict[str, Phrases] = {
    "en": {"face": ("smiling face", "happy face")}, "zh": {"face": ("笑脸",), "heart": ("爱心",)}
}  # fmt: skip
_PHRASES: dict[tuple[str, str], Phrases] = {
    (language, world.name): table if world is WORLD_1 else {**table, **_OTHER_WORDS[language]}
    for language, table in (("en", EN), ("zh", ZH))
    for world in (WORLD_1, WORLD_2)
}


def phrases(language: str, world: World) -> Phrases:
    """Value -> what it may be called in this world, the commonest first; a value that is missing is
    its own word. KeyError for another language.
    """
    return _PHRASES[language, world.name]


@lru_cache(maxsize=8)
def homonyms(language: str, world: World = WORLD_2) -> dict[str, tuple[str, ...]]:
    """Kind -> the kinds that share its word in this language, itself among them, in order of
    `world.kinds`; only kinds whose word is ambiguous.
    """
    table = phrases(language, world)
    words = {kind: set(table.get(kind, (kind,))) for kind in world.kinds}
    sharing = {
        kind: tuple(other for other in world.kinds if words[kind] & words[other])
        for kind in world.kinds
    }
    return {kind: kinds for kind, kinds in sharing.items() if len(kinds) > 1}

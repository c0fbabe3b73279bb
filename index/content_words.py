"""What a question asks about: its words without those that only make it a question.

A question's vector and its words are compared with pictures and captions. "what colour is" stands
in no caption, so that a question as it is would match nothing here by `chiasm.index.query.
calibrate`. The words below are left out: question words, auxiliaries, pronouns, prepositions,
places, and what is asked for (colour, number, ...). They are of English and Chinese at large and of
no collection. `python -m benchmarks.questions_match` measures what that does.
"""

from __future__ import annotations

import re

_ENGLISH_WORDS = """
what which who whom whose where when why how many much
is are was were be am do does did can could has have had will would shall should may might must
ca wo sha doing happening going
a an the this that these those there here it its he she they i we you any some one ones
of in on at to into from for with by as and or not if than
see seen show shows shown showing look looks looking visible say tell name count find describe
give answer please true yes no
picture pictures image images photo photos photograph photographs scene
colour colours color colors size pattern place position shape kind type sort number
thing things object objects something anything
left right above below under over top bottom middle centre center corner between near next
beside behind front side
"""
_CHINESE_WORDS = """
是不是 有没有 没有 是否 还是 什么 哪里 哪儿 哪个 哪种 哪些 哪 正在
怎么样 怎样 怎么 为什么 谁
请问 请 说出 告诉我 告诉 描述 能看到 能看见 看到 看见 可以
这张 这幅 这个 这里 那里 一共 里面 里边
颜色 大小 图案 位置 形状 种类 数量 东西 物体 样子 地方
左边 右边 左侧 右侧 左面 右面 上面 下面 上方 下方 上边 下边 前面 后面 旁边 中间 之间
左上角 右上角 左下角 右下角 在 是 的
"""
_ENGLISH = frozenset(_ENGLISH_WORDS.split())
# Characters that are part of other words too: 里, 上 and 中 after a picture (画面里的猫; not
# 画面上方, 图片中间), particles at the end of a clause alone (not 酒吧外), 几 with the measure
# word after it, not in 茶几, 有 not in 有轨电车 and 有机; 里, 上, 下 and 中 after a noun of two
# characters or more, at its end (房子里; not 早上).
_CHINESE_PARTS = (
    r"(?:图片|照片|画面|图(?=[里中上]))(?:[里中上](?![面间方边部央]))?",
    r"[吗呢吧](?=\W|$)",
    r"(?:多少|(?<!茶)几)[个只条辆张位座棵朵把艘]?",
    "有(?![轨机])",
)
# A longer one goes before those that are part of it.
_CHINESE = re.compile(
    "|".join((*sorted(_CHINESE_WORDS.split(), key=len, reverse=True), *_CHINESE_PARTS))
)
_LOCATIVE = re.compile(r"(?<=[\u3400-\u9fff]{2})[里上下中](?=\W|$)")
_HAN = re.compile(r"[\u3400-\u9fff]")
# isn't -> is; of can't, won't and shan't what is left is listed above
_CONTRACTED = re.compile(r"(?:n['’]t|['’](?:s|re|ve|ll|d|m))\b")
_WORD = re.compile(r"[^\W_]+(?:-[^\W_]+)*")


def content_words(question: str) -> str:
    """The words of a question that say what it is about, in their order and in lower case; "" where
    it has none. English gets an article, as in captions: "what colour are the red boats?" -> "red
    boats", "where is the boat" -> "a boat". Chinese keeps what lies between the words left out."""
    text = _CONTRACTED.sub("", question.lower())
    chinese = _HAN.search(text) is not None
    if chinese:
        text = _LOCATIVE.sub(" ", _CHINESE.sub(" ", text))
    words = [word for word in _WORD.findall(text) if word not in _ENGLISH]
    singular = words and not chinese and not words[-1].endswith("s")
    return " ".join(["a", *words] if singular else words)

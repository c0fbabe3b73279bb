"""The wordings of questions in English and Chinese, and which of them no training sees.

A form is a sentence with slots: {a} and {b} things, {one} the thing `a` with its article or
counter, {like} a colour, size or pattern, {place}, {relation} to a thing, {further} in a direction.
The forms withheld from training test whether a model reads a question by its words: all of their
words are words of other forms. English is British, with "color" in a few forms, as people type.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

# Language -> type of question -> forms. A form's number is its place in its tuple.
FORMS: dict[str, dict[str, tuple[str, ...]]] = {
    "en": {
        "what_at": (
            "what is {place}?",
            "which thing is {place}?",
            "what can be seen {place}?",
            "what do you see {place}?",
            "name the thing {place}",
        ),
        "colour": (
            "what colour is the {a}?",
            "which colour does the {a} have?",
            "what is the colour of the {a}?",
            "what color is the {a}?",
            "name the colour of the {a}",
        ),
        "size": (
            "how big is the {a}?",
            "what size is the {a}?",
            "is the {a} big or small?",
            "which size does the {a} have?",
            "name the size of the {a}",
        ),
        "pattern": (
            "what pattern does the {a} have?",
            "which pattern does the {a} have?",
            "what is the pattern of the {a}?",
            "what pattern is on the {a}?",
            "name the pattern of the {a}",
        ),
        "where": (
            "where is the {a}?",
            "where in the picture is the {a}?",
            "where can the {a} be seen?",
            "where do you see the {a}?",
            "name the place of the {a}",
        ),
        "count": (
            "how many things are there?",
            "how many things are in the picture?",
            "how many things can be seen?",
            "how many things do you see?",
            "count the things",
        ),
        "count_like": (
            "how many {like} things are there?",
            "how many things are {like}?",
            "how many {like} things are in the picture?",
            "how many {like} things do you see?",
            "count the {like} things",
        ),
        "is_there": (
            "is there {one}?",
            "is there {one} in the picture?",
            "do you see {one}?",
            "does the picture show {one}?",
            "can {one} be seen?",
        ),
        "is_related": (
            "is the {a} {relation} the {b}?",
            "in the picture, is the {a} {relation} the {b}?",
            "does the picture show the {a} {relation} the {b}?",
            "is it true that the {a} is {relation} the {b}?",
            "would you say that the {a} is {relation} the {b}?",
        ),
        "is_like": (
            "is the {a} {like}?",
            "in the picture, is the {a} {like}?",
            "is the {a} in the picture {like}?",
            "is it true that the {a} is {like}?",
            "would you say that the {a} is {like}?",
        ),
        "background": (
            "what is the background?",
            "what is in the background?",
            "what is the background of the picture?",
            "what does the background show?",
            "name the background",
        ),
        "further": (
            "which is {further}, the {a} or the {b}?",
            "what is {further}, the {a} or the {b}?",
            "which thing is {further}, the {a} or the {b}?",
            "is the {a} or the {b} {further}?",
            "of the {a} and the {b}, which is {further}?",
        ),
        "colour_at": (
            "what colour is the thing {place}?",
            "which colour does the thing {place} have?",
            "what is the colour of the thing {place}?",
            "what color is the thing {place}?",
            "name the colour of the thing {place}",
        ),
        "what_related": (
            "what is {relation} the {b}?",
            "which thing is {relation} the {b}?",
            "what can be seen {relation} the {b}?",
            "what do you see {relation} the {b}?",
            "name the thing {relation} the {b}",
        ),
        "what_like": (
            "what is {like}?",
            "which thing is {like}?",
            "what is the {like} thing?",
            "which of the things is {like}?",
            "name the {like} thing",
        ),
        "colour_related": (
            "what colour is the thing {relation} the {b}?",
            "which colour does the thing {relation} the {b} have?",
            "what is the colour of the thing {relation} the {b}?",
            "what color is the thing {relation} the {b}?",
            "name the colour of the thing {relation} the {b}",
        ),
    },
    "zh": {
        "what_at": (
            "{place}是什么？",
            "{place}有什么？",
            "图里{place}是什么？",
            "画面{place}有什么东西？",
            "说出{place}的东西",
        ),
        "colour": (
            "{a}是什么颜色？",
            "{a}是什么颜色的？",
            "{a}的颜色是什么？",
            "{a}是哪种颜色？",
            "说出{a}的颜色",
        ),
        "size": (
            "{a}是大还是小？",
            "{a}大还是小？",
            "{a}是大的还是小的？",
            "图里的{a}是大还是小？",
            "说出{a}的大小",
        ),
        "pattern": (
            "{a}是什么图案？",
            "{a}的图案是什么？",
            "{a}是哪种图案？",
            "图里的{a}是什么图案？",
            "说出{a}的图案",
        ),
        "where": (
            "{a}在哪里？",
            "{a}在什么位置？",
            "{a}在图里的什么位置？",
            "在哪里能看到{a}？",
            "说出{a}的位置",
        ),
        "count": (
            "有几个东西？",
            "图里有几个东西？",
            "一共有几个东西？",
            "画面里有多少个东西？",
            "图里能看到几个东西？",
        ),
        "count_like": (
            "有几个{like}东西？",
            "图里有几个{like}东西？",
            "画面里有多少个{like}东西？",
            "{like}东西有几个？",
            "有几个东西是{like}？",
        ),
        "is_there": (
            "有{a}吗？",
            "图里有{a}吗？",
            "有没有{a}？",
            "图里有没有{a}？",
            "画面里有没有{one}？",
        ),
        "is_related": (
            "{a}在{b}的{relation}吗？",
            "{a}是在{b}的{relation}吗？",
            "{a}是不是在{b}的{relation}？",
            "图里的{a}在{b}的{relation}吗？",
            "画面里{a}是不是在{b}的{relation}？",
        ),
        "is_like": (
            "{a}是{like}吗？",
            "{a}是不是{like}？",
            "图里的{a}是{like}吗？",
            "画面里的{a}是不是{like}？",
            "{a}是{like}，是吗？",
        ),
        "background": (
            "背景是什么？",
            "图里的背景是什么？",
            "画面的背景是什么？",
            "图里是什么背景？",
            "说出画面的背景",
        ),
        "further": (
            "{a}和{b}哪个{further}？",
            "{a}和{b}，哪个{further}？",
            "哪个{further}，{a}还是{b}？",
            "图里的{a}和{b}哪个{further}？",
            "是{a}{further}，还是{b}{further}？",
        ),
        "colour_at": (
            "{place}的东西是什么颜色？",
            "{place}的东西是什么颜色的？",
            "{place}的东西是哪种颜色？",
            "图里{place}的东西是什么颜色？",
            "说出{place}的东西的颜色",
        ),
        "what_related": (
            "{b}的{relation}是什么？",
            "{b}的{relation}有什么东西？",
            "图里{b}的{relation}是什么？",
            "什么在{b}的{relation}？",
            "哪个东西在{b}的{relation}？",
        ),
        "what_like": (
            "{like}东西是什么？",
            "{like}是什么？",
            "什么东西是{like}？",
            "哪个东西是{like}？",
            "图里{like}东西是什么？",
        ),
        "colour_related": (
            "{b}{relation}的东西是什么颜色？",
            "{b}{relation}的东西是什么颜色的？",
            "{b}{relation}的东西是哪种颜色？",
            "图里{b}{relation}的东西是什么颜色？",
            "说出{b}{relation}的东西的颜色",
        ),
    },
}
WHICH_FORMS = ("trained", "withheld", "all")


def withheld_form(form: str) -> bool:
    """Whether no training draws this form: one in five of each type, by the SHA-256 of its text."""
    return form in _withheld_forms()


@lru_cache(maxsize=1)
def _withheld_forms() -> frozenset[str]:
    tables = [forms for types in FORMS.values() for forms in types.values()]
    return frozenset(
        form for forms in tables for form in sorted(forms, key=_digest)[: len(forms) // 5]
    )


def _digest(form: str) -> bytes:
    return hashlib.sha256(form.encode()).digest()


@lru_cache(maxsize=256)
def form_numbers(language: str, kind: str, forms: str) -> tuple[int, ...]:
    """Numbers of the forms of one type of question: `forms` is one of WHICH_FORMS."""
    if forms not in WHICH_FORMS:
        raise ValueError(f"forms {forms!r}: expected one of {', '.join(WHICH_FORMS)}")
    return tuple(
        number
        for number, form in enumerate(FORMS[language][kind])
        if forms == "all" or withheld_form(form) == (forms == "withheld")
    )

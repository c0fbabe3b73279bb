"""The wordings of questions in English and Chinese, and which of them no training sees.

A form is a sentence with slots: {a} and {b} things, {one} the thing `a` with its article or
counter, {like} a colour, size or pattern, {place}, {relation} to a thing, {further} in a direction.
The forms withheld from training test whether a model reads a question by its words: all of their
words are words of other forms.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

from chiasm.pipeline.scenes.question_forms_en import ENGLISH
from chiasm.pipeline.scenes.question_forms_zh import CHINESE

# Language -> type of question -> forms. A form's number is its place in its tuple.
FORMS = {"en": ENGLISH, "zh": CHINESE}
WHICH_FORMS = ("trained", "withheld", "all")


def withheld_form(form: str) -> bool:
    """Whether no training draws this form: of every five forms of a type, in their order, the one
    whose text has the lowest SHA-256. So forms that are added change nothing about those before
    them. Of fewer than five at the end none is withheld."""
    return form in _withheld_forms()


@lru_cache(maxsize=1)
def _withheld_forms() -> frozenset[str]:
    tables = [forms for types in FORMS.values() for forms in types.values()]
    return frozenset(
        min(forms[first : first + 5], key=_digest)
        for forms in tables
        for first in range(0, len(forms) - 4, 5)
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

"""The grammar of a query on the command line: TEXT, --image, --plus and --minus -> a `Query`'s
inputs.

    TEXT                        a text, weight 1; with --image they are searched together
    WEIGHT: TEXT                in a query of several parts: TEXT with that weight
    --plus, --minus             a text more, or one to search away from; either may have a WEIGHT
    --image WEIGHT:PICTURE      a picture with a weight, which may be negative

A WEIGHT is a number below 100, then a colon and a space, or a colon of full width. Before a text
that begins with a digit it needs a decimal point. So `12: 30 train`, `4:3 photo` and
`2001: a space odyssey` are texts, and `2.0: 3 boats` has a weight. A text alone never has one, nor
has a line of stdin or of a file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from chiasm.index import Query, Term
from chiasm.pipeline.errors import UsageError

WEIGHT = r"(?P<weight>[0-9]{1,2}(?:\.[0-9]+)?|\.[0-9]+)"
# Chinese is typed with a colon of full width, which no space follows.
WEIGHTED_TEXT = re.compile(WEIGHT + r"(?::\s+|：\s*)(?P<text>\S.*)", re.DOTALL)
WEIGHTED_PICTURE = re.compile(r"(?P<sign>-?)" + WEIGHT + r"[:：](?P<source>.+)", re.DOTALL)


def weighted_text(text: str) -> Term:
    """A text of a query of several parts, with its weight where it has one."""
    found = WEIGHTED_TEXT.fullmatch(text.strip())
    if found is None or (found["text"][0].isdigit() and "." not in found["weight"]):
        return Term(text)
    return Term(found["text"], weight=float(found["weight"]))


def weighted_picture(source: str) -> Term:
    """A picture's path or URL, with its weight where it has one. A file that has the whole name is
    that file; UsageError where the rest of the name is a file, too."""
    found = WEIGHTED_PICTURE.fullmatch(source)
    if found is None:
        return Term(image=source)
    if not os.path.exists(source):
        weight = float(found["weight"])
        return Term(image=found["source"], weight=-weight if found["sign"] else weight)
    if os.path.exists(found["source"]):
        weight = source[: found.start("source")]
        raise UsageError(
            f"--image {source}",
            expected="one picture",
            found=f"two: a file of that name, and {found['source']} with a weight",
            do=f"type ./{source} for the first, {weight}./{found['source']} for the second",
        )
    return Term(image=source)


@dataclass(frozen=True, slots=True)
class Parts:
    """What a query has beside its TEXT, as it was typed."""

    images: Sequence[str] = ()
    plus: Sequence[str] = ()
    minus: Sequence[str] = ()

    def options(self) -> list[str]:
        """The arguments that say so, [] for none."""
        typed = (("--image", self.images), ("--plus", self.plus), ("--minus", self.minus))
        return [word for option, values in typed for value in values for word in (option, value)]

    def inputs(self) -> list[str]:
        """The pictures' paths and URLs."""
        return [str(weighted_picture(image).image) for image in self.images]

    def terms(self) -> list[Term]:
        positive = [*map(weighted_text, self.plus), *map(weighted_picture, self.images)]
        negative = [replace(term, weight=-term.weight) for term in map(weighted_text, self.minus)]
        return positive + negative


def query_maker(parts: Parts, *, is_data: bool, **fields: Any) -> Callable[[str | None], Query]:
    """A function from TEXT to the query of it and these parts, with `fields` of `Query`.

    A text and a picture without weights are a plain query of both, not a weighted one. is_data: the
    text is a line of stdin, which never has a weight.
    """
    others = parts.terms()

    def make(text: str | None) -> Query:
        if not others or text is None or not text.strip():
            first = []
        else:
            first = [Term(text) if is_data else weighted_text(text)]
        terms = [*first, *others]
        texts = [term.text for term in terms if term.image is None]
        images = [term.image for term in terms if term.image is not None]
        if max(len(texts), len(images)) <= 1 and all(term.weight == 1 for term in terms):
            image = images[0] if images else None
            return Query(texts[0] if texts else text, image, **fields)
        return Query(terms=terms, **fields)

    return make

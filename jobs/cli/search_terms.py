"""The grammar of a query on the command line: TEXT, --image, --sound, --member, --plus and --minus
-> a `Query`'s inputs.

    TEXT                        a text, weight 1; with --image they are searched together
    WEIGHT: TEXT                in a query of several parts: TEXT with that weight
    --plus, --minus             a text more, or one to search away from; either may have a WEIGHT
    --image WEIGHT:PICTURE      a picture with a weight, which may be negative
    --sound, --member           the same of a sound, and of a file of any modality

A WEIGHT is a number below 100, then a colon and a space, or a colon of full width. Before a text
that begins with a digit it needs a decimal point. So `12: 30 train`, `4:3 photo` and
`2001: a space odyssey` are texts, and `2.0: 3 boats` has a weight. A text alone never has one, nor
has a line of stdin or of a file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from chiasm.index import Query, Term
from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.records import IMAGE, SOUND, TEXT

WEIGHT = r"(?P<weight>[0-9]{1,2}(?:\.[0-9]+)?|\.[0-9]+)"
# Chinese is typed with a colon of full width, which no space follows.
WEIGHTED_TEXT = re.compile(WEIGHT + r"(?::\s+|：\s*)(?P<text>\S.*)", re.DOTALL)
WEIGHTED_FILE = re.compile(r"(?P<sign>-?)" + WEIGHT + r"[:：](?P<source>.+)", re.DOTALL)


def weighted_text(text: str) -> Term:
    """A text of a query of several parts, with its weight where it has one."""
    found = WEIGHTED_TEXT.fullmatch(text.strip())
    if found is None or (found["text"][0].isdigit() and "." not in found["weight"]):
        return Term(text)
    return Term(found["text"], weight=float(found["weight"]))


def weighted_file(option: str, source: str) -> tuple[str, float]:
    """A path or URL, and its weight. A file that has the whole name is that file; UsageError where
    the rest of the name is a file, too. option: with which it was typed."""
    found = WEIGHTED_FILE.fullmatch(source)
    if found is None:
        return source, 1.0
    if not os.path.exists(source):
        weight = float(found["weight"])
        return found["source"], -weight if found["sign"] else weight
    if os.path.exists(found["source"]):
        weight = source[: found.start("source")]
        what = "picture" if option == "--image " else "file"
        raise UsageError(
            f"{option}{source}",
            expected=f"one {what}",
            found=f"two: a file of that name, and {found['source']} with a weight",
            do=f"type {typed(option)}./{source} for the first, "
            f"{typed(option)}{weight}./{found['source']} for the second",
        )
    return source, 1.0


def typed(option: str) -> str:
    """What stands before a file in the option's value: `array=` of `--member array=`."""
    return option.partition(" ")[2]


@dataclass(frozen=True, slots=True)
class Parts:
    """What a query has beside its TEXT, as it was typed."""

    images: Sequence[str] = ()
    plus: Sequence[str] = ()
    minus: Sequence[str] = ()
    sounds: Sequence[str] = ()
    members: Sequence[str] = ()

    def options(self) -> list[str]:
        """The arguments that say so, [] for none."""
        given = {
            "--image": self.images,
            "--sound": self.sounds,
            "--member": self.members,
            "--plus": self.plus,
            "--minus": self.minus,
        }
        return [
            word for option, values in given.items() for one in values for word in (option, one)
        ]

    def files(self) -> dict[str, str]:
        """The paths and URLs that are searched by; with what was typed of each but its weight."""
        return {
            option + source: source
            for _, option, value in self._files()
            for source, _ in [weighted_file(option, value)]
        }

    def terms(self) -> list[Term]:
        positive = list(map(weighted_text, self.plus))
        for modality, option, value in self._files():
            source, weight = weighted_file(option, value)
            image, members = (source, {}) if modality == IMAGE else (None, {modality: source})
            positive.append(Term(image=image, weight=weight, members=members))
        negative = [replace(term, weight=-term.weight) for term in map(weighted_text, self.minus)]
        return positive + negative

    def _files(self) -> Iterator[tuple[str, str, str]]:
        """Modality, how its option is typed, and its value, which may have a weight."""
        for value in self.images:
            yield IMAGE, "--image ", value
        for value in self.sounds:
            yield SOUND, "--sound ", value
        for member in self.members:
            modality, equals, value = member.partition("=")
            if not equals or not modality or not value:
                raise UsageError(
                    f"--member {member}", expected="MODALITY=FILE, such as array=x.npy"
                )
            yield modality, f"--member {modality}=", value


def query_maker(parts: Parts, *, is_data: bool, **fields: Any) -> Callable[[str | None], Query]:
    """A function from TEXT to the query of it and these parts, with `fields` of `Query`.

    A text, a picture and a file of each other modality, without weights, are a plain query of all
    of them, not a weighted one. is_data: the text is a line of stdin, which never has a weight.
    """
    others = parts.terms()

    def make(text: str | None) -> Query:
        if not others or text is None or not text.strip():
            first = []
        else:
            first = [Term(text) if is_data else weighted_text(text)]
        terms = [*first, *others]
        parts = {term.modality: term for term in terms}
        if len(parts) < len(terms) or any(term.weight != 1 for term in terms):
            return Query(terms=terms, **fields)
        words = parts[TEXT].text if TEXT in parts else text
        image = parts[IMAGE].image if IMAGE in parts else None
        members = {name: file for term in terms for name, file in term.members.items()}
        return Query(words, image, members=members, **fields)

    return make

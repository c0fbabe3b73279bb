"""A question about a collection: find pictures, answer from each of them, and name them.

What the question is about (content_words.py), or what `about` says, is searched for; each picture
that is found is asked the question; the answer is that of the first, and the others stand beside
it. Where a rate of false alarms is given and nothing here matches at it (index/query/calibrate.py),
nothing is answered: a model would answer from any picture.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chiasm.index.content_words import content_words
from chiasm.index.queries import Query
from chiasm.index.query import pixels_of
from chiasm.index.results import Answer, Result
from chiasm.index.retrieve import Searcher
from chiasm.pipeline.encoders import (
    Answerer,
    Fault,
    GenerateSettings,
    Reply,
    Request,
    answer_batch,
    language_of,
    require_task,
    require_trial,
)
from chiasm.pipeline.errors import ChiasmError, UsageError
from chiasm.pipeline.records import IMAGE

BATCH = 16  # inputs that are answered together
BATCH_BYTES = 1 << 30  # of their pictures, as the model counts them: some are 100 megapixels


@dataclass(frozen=True, slots=True)
class Source:
    """A picture that was asked: the result of the search, and what the model answered from it, or
    why it has no answer. truncated: tokens of the question that the model did not read."""

    result: Result
    answer: str | None
    confidence: float | None = None
    reason: str | None = None
    truncated: int = 0


@dataclass(frozen=True, slots=True)
class CollectionAnswer:
    """The answer to a question; None where nothing here matches, or no source gave one.

    sources: in the order of the search; none where nothing matches. found: what the search gave.
    not_judged: nothing was refused, as the captions of what was found are in another script than
    what was searched for: by its words all of it would be absent.
    """

    question: str
    answer: str | None
    sources: tuple[Source, ...]
    found: Answer
    refused: bool
    not_judged: bool = False

    @property
    def truncated(self) -> int:
        """Tokens of the question that the model did not read."""
        return max((source.truncated for source in self.sources), default=0)

    def as_json(self) -> dict[str, Any]:
        """question, searched, answer, refused, p_absent, truncated, and sources: id, key, score,
        answer, confidence, and a reason where there is no answer."""
        return {
            "question": self.question,
            "searched": self.found.query.words,
            "answer": self.answer,
            "refused": self.refused,
            "p_absent": None if self.not_judged else self.found.p_absent,
            "truncated": self.truncated,
            "sources": [_source_as_json(source) for source in self.sources],
        }


@dataclass(frozen=True, slots=True)
class AskSettings:
    """k: pictures that are asked. about: what to search for, None for what the question is about.
    where: as in `Query`. false_alarms: the share of searches for nothing here that may be answered
    all the same; None: answer always. language: of the answer, None for that of the question."""

    k: int = 5
    about: str | None = None
    column: str = IMAGE
    where: str | None = None
    false_alarms: float | None = None
    language: str | None = None


def searched_for(question: str, about: str | None, false_alarms: float | None) -> str:
    """What to search for. A question that is about nothing in particular is searched for as it is
    where all is answered, and refused by a UsageError else."""
    if about is not None:
        return about
    words = content_words(question)
    if not words and false_alarms is not None:
        raise UsageError(
            f'"{question}"',
            expected="a question about something that can be searched for",
            found="only words that ask",
            do="add what to search for: --about TEXT, or about= in Python",
        )
    return words or question


def ask_collection(
    searcher: Searcher,
    answerer: Answerer,
    question: str,
    settings: AskSettings | None = None,
    generating: GenerateSettings | None = None,
) -> CollectionAnswer:
    """Answer a question from a collection's pictures.

    Raises UsageError for a model that does not answer questions and for a question that says not
    what it is about, and what a search raises."""
    settings = settings or AskSettings()
    language = settings.language or language_of(question)
    require_task(answerer, "ask", language)
    rate = settings.false_alarms
    query = Query(
        searched_for(question, settings.about, rate),
        column=settings.column,
        k=settings.k,
        where=settings.where,
        calibrated=rate is not None,
    )
    found = searcher.search_many([query])[0]
    absent = rate is not None and found.nothing_matches(rate)
    judged = _in_one_script(query.words, found)
    if absent and judged:
        return CollectionAnswer(question, None, (), found, refused=True)
    sources = _ask_each(found, answerer, question, language, generating)
    answer = next((source.answer for source in sources if source.answer is not None), None)
    not_judged = rate is not None and not judged
    return CollectionAnswer(question, answer, sources, found, refused=False, not_judged=not_judged)


def _in_one_script(text: str, results: Sequence[Result]) -> bool:
    """Whether a caption of the results is in the script of the text, or there is no caption."""
    captions = [caption for result in results for caption in result.captions]
    return not captions or _script(text) in ("", *map(_script, captions))


def _script(text: str) -> str:
    """CJK where a text has a Chinese character; else the script of most of its letters, "" where it
    has none."""
    if language_of(text) == "zh":
        return "CJK"
    letters = filter(str.isalpha, unicodedata.normalize("NFKC", text))
    scripts = Counter(unicodedata.name(letter, "").partition(" ")[0] for letter in letters)
    return scripts.most_common(1)[0][0] if scripts else ""


def _ask_each(
    results: Sequence[Result],
    answerer: Answerer,
    question: str,
    language: str,
    generating: GenerateSettings | None,
) -> tuple[Source, ...]:
    """Every result as a source. A picture that is gone or cannot be read costs no other its
    answer."""
    pixels: dict[int, Any] = {}
    reasons: dict[int, str] = {}
    answered: dict[int, Reply | Fault] = {}

    def flush() -> None:
        requests = [Request("ask", language, image, question) for image in pixels.values()]
        replies = answer_batch(answerer, requests, generating or GenerateSettings())
        require_trial(answerer, requests, replies)
        answered.update(zip(pixels, replies, strict=True))
        pixels.clear()

    for number, result in enumerate(results):
        try:
            pixels[number] = pixels_of(result.picture(), answerer)
        except ChiasmError as error:
            reasons[number] = str(error)
        cost = sum(answerer.cost(IMAGE, image) for image in pixels.values())
        if len(pixels) == BATCH or cost > BATCH_BYTES:
            flush()
    flush()
    sources = []
    for number, result in enumerate(results):
        reply = answered.get(number)
        if reply is None or isinstance(reply, Fault):
            sources.append(Source(result, None, reason=reasons.get(number) or str(reply)))
        else:
            sources.append(Source(result, reply.text, reply.confidence, None, reply.truncated))
    return tuple(sources)


def _source_as_json(source: Source) -> dict[str, Any]:
    result = source.result
    fields = {"id": result.id, "key": result.key, "score": float(np.float32(result.score))}
    fields |= {"answer": source.answer, "confidence": source.confidence}
    return fields | ({"reason": source.reason} if source.reason is not None else {})

"""A question about a collection: find pictures, answer from each of them, and name them.

The question, or what `about` says, is searched for; each picture that is found is asked the
question; the answer is that of the first, and the others stand beside it. Where a rate of false
alarms is given and nothing here matches at it (index/query/calibrate.py), nothing is answered: a
model would answer from any picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chiasm.index.queries import Query
from chiasm.index.query import pixels_of
from chiasm.index.results import Answer, Result
from chiasm.index.retrieve import Searcher
from chiasm.pipeline.encoders import (
    Answerer,
    Fault,
    GenerateSettings,
    Request,
    answer_batch,
    require_task,
)
from chiasm.pipeline.errors import ChiasmError
from chiasm.pipeline.records import IMAGE


@dataclass(frozen=True, slots=True)
class Source:
    """A picture that was asked: the result of the search, and what the model answered from it, or
    why it has no answer."""

    result: Result
    answer: str | None
    confidence: float | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class CollectionAnswer:
    """The answer to a question; None where nothing here matches, or no source gave one.

    sources: in the order of the search; none where nothing matches. found: what the search gave.
    """

    question: str
    answer: str | None
    sources: tuple[Source, ...]
    found: Answer
    refused: bool

    def as_json(self) -> dict[str, Any]:
        """question, answer, refused, p_absent, and sources: id, key, score, answer, confidence, and
        a reason where there is no answer."""
        return {
            "question": self.question,
            "answer": self.answer,
            "refused": self.refused,
            "p_absent": self.found.p_absent,
            "sources": [_source_as_json(source) for source in self.sources],
        }


@dataclass(frozen=True, slots=True)
class AskSettings:
    """k: pictures that are asked. about: what to search for, None for the question. where: as in
    `Query`. false_alarms: the share of searches for nothing here that may be answered all the same;
    None: answer always. It is calibrated on captions, so it is for what `about` says: questions are
    worded in another way, and most would be refused. language: of the answer."""

    k: int = 5
    about: str | None = None
    column: str = IMAGE
    where: str | None = None
    false_alarms: float | None = None
    language: str = "en"


def ask_collection(
    searcher: Searcher,
    answerer: Answerer,
    question: str,
    settings: AskSettings | None = None,
    generating: GenerateSettings | None = None,
) -> CollectionAnswer:
    """Answer a question from a collection's pictures.

    Raises UsageError for a model that does not answer questions, and what a search raises."""
    settings = settings or AskSettings()
    require_task(answerer, "ask", settings.language)
    query = Query(
        settings.about or question,
        column=settings.column,
        k=settings.k,
        where=settings.where,
        calibrated=settings.false_alarms is not None,
    )
    found = searcher.search_many([query])[0]
    if settings.false_alarms is not None and found.nothing_matches(settings.false_alarms):
        return CollectionAnswer(question, None, (), found, refused=True)
    sources = _ask_each(found, answerer, question, settings.language, generating)
    answer = next((source.answer for source in sources if source.answer is not None), None)
    return CollectionAnswer(question, answer, sources, found, refused=False)


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
    for number, result in enumerate(results):
        try:
            pixels[number] = pixels_of(result.picture(), answerer)
        except ChiasmError as error:
            reasons[number] = str(error)
    requests = [Request("ask", language, image, question) for image in pixels.values()]
    replies = answer_batch(answerer, requests, generating or GenerateSettings())
    answered = dict(zip(pixels, replies, strict=True))
    sources = []
    for number, result in enumerate(results):
        reply = answered.get(number)
        if reply is None or isinstance(reply, Fault):
            sources.append(Source(result, None, reason=reasons.get(number) or str(reply)))
        else:
            sources.append(Source(result, reply.text, reply.confidence))
    return tuple(sources)


def _source_as_json(source: Source) -> dict[str, Any]:
    result = source.result
    fields = {"id": result.id, "key": result.key, "score": float(np.float32(result.score))}
    fields |= {"answer": source.answer, "confidence": source.confidence}
    return fields | ({"reason": source.reason} if source.reason is not None else {})

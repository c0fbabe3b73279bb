"""What an answerer is: a model that says, of a picture, a text or both, another text, or that draws
a picture; and how it is asked for a batch, of which single items may fail.

A task is one of TASKS; a language is `en` or `zh`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from chiasm.pipeline.encoders.faults import Fault
from chiasm.pipeline.encoders.protocols import Array, Preprocessor
from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.records import IMAGE, TEXT

TASKS: Mapping[str, tuple[str, ...]] = {  # task -> the modalities that its request has
    "caption": (IMAGE,),
    "ask": (IMAGE, TEXT),
    "translate": (IMAGE, TEXT),
    "sentiment": (IMAGE, TEXT),
    "imagine": (TEXT,),
}
LANGUAGES = ("en", "zh")
MOST_BEAMS = 256
MOST_CANDIDATES = 256
_HAN = re.compile(r"[\u3400-\u9fff]")


@dataclass(frozen=True, slots=True)
class Request:
    """One input of a task.

    language: of the answer; `imagine` ignores it. image: an output of the answerer's `preprocess`;
    requests of one picture share the object, so that it can be encoded once. text: as it was
    given: the question, the sentence to translate, the text whose sentiment is wanted, or the
    caption to draw. Each is None where TASKS does not name it for the task.
    """

    task: str
    language: str = "en"
    image: Any = None
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to one request.

    text: empty for `imagine`. image: for `imagine`, uint8 (H, W, 3) RGB; else None. confidence: the
    geometric mean of the probabilities that the model gave the tokens of its answer, before
    temperature and penalties, or the probability of the label; None where the model gives none.
    scores: label -> probability, the most probable first, for models that classify; else None.
    truncated: tokens of the request's text that the model did not read. endless: the answer filled
    all the room that the model has, and was not at its end.
    """

    text: str
    image: Array | None = None
    confidence: float | None = None
    scores: Mapping[str, float] | None = None
    truncated: int = 0
    endless: bool = False


@dataclass(frozen=True, slots=True)
class Sampling:
    """Tokens drawn at random from the most probable ones whose probabilities sum to `top_p`, after
    the logits were divided by `temperature`. The same request, settings and seed draw the same
    tokens, whatever the batch."""

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.001 <= self.temperature < float("inf"):  # logits stay finite divided by it
            expected, found = "a finite number, 0.001 or more", f"{self.temperature:g}"
            raise UsageError("temperature", expected=expected, found=found)
        if not 0 < self.top_p <= 1:
            raise UsageError("top_p", expected="above 0, at most 1", found=f"{self.top_p:g}")
        if not -(2**63) <= self.seed < 2**63:
            raise UsageError("seed", expected="an integer of 64 bits", found=str(self.seed))


@dataclass(frozen=True, slots=True)
class GenerateSettings:
    """How an answer is found. beams: 1 for the most probable token at each step, more for a beam
    search of that width, up to MOST_BEAMS. max_tokens: of an answer; None for the model's own
    number. sampling: in place of beams. candidates: pictures that `imagine` samples for one text,
    up to MOST_CANDIDATES; of more than one the picture is kept that the model's own matching finds
    the text likeliest of (Ramesh et al., Zero-Shot Text-to-Image Generation, 2021); None for the
    model's own number, 1 of a model that does not match. Other tasks write one answer."""

    beams: int = 1
    max_tokens: int | None = None
    sampling: Sampling | None = None
    candidates: int | None = 1

    def __post_init__(self) -> None:
        for name in ("beams", "max_tokens", "candidates"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(name, expected="1 or more", found=str(value))
        if self.beams > MOST_BEAMS:
            raise UsageError("beams", expected=f"at most {MOST_BEAMS}", found=str(self.beams))
        if self.candidates is not None and self.candidates > MOST_CANDIDATES:
            expected = f"at most {MOST_CANDIDATES}"
            raise UsageError("candidates", expected=expected, found=str(self.candidates))
        if self.sampling is None and (self.candidates or 1) > 1:
            raise UsageError(
                "candidates", expected="1 without sampling", found=f"{self.candidates}"
            )
        if self.sampling is not None and self.beams > 1:
            raise UsageError("beams", expected="1 with sampling", found=str(self.beams))


@runtime_checkable
class Answerer(Preprocessor, Protocol):
    """A model that answers. It need not be an encoder, and nothing in it changes once it is loaded.

    fingerprint: hex digest of weights, tokenizer, preprocessing and prompts: the same fingerprint
    and settings, the same replies. precision and device: recorded beside it, never part of it.
    tasks: of TASKS, with the languages of LANGUAGES that it answers each in; none for `imagine`.
    """

    fingerprint: str
    precision: str
    device: str
    tasks: Mapping[str, tuple[str, ...]]

    def answer(self, requests: Sequence[Request], settings: GenerateSettings) -> list[Reply]:
        """B requests, of one task or several -> B replies, in their order. Each reply is that of
        its request alone, up to rounding. UsageError for a task or language that it lacks."""
        ...


def language_of(text: str | None) -> str:
    """The language in which a text is answered where nobody says another: `zh` if it has Chinese
    characters, else `en`."""
    return "zh" if _HAN.search(text or "") else "en"


def require_task(answerer: Answerer, task: str, language: str | None = None) -> None:
    """UsageError where the model lacks the task, or answers in no such language."""
    if task not in answerer.tasks:
        have = [_verb(name) for name in TASKS if name in answerer.tasks]
        raise UsageError(
            f"model {answerer.name}",
            expected=f"one that can {_verb(task)}",
            found=f"one that can {', '.join(have)}" if have else "one that answers nothing",
            do="take another model",
        )
    languages = answerer.tasks[task]
    if language is not None and task != "imagine" and language not in languages:
        raise UsageError(
            f"model {answerer.name}",
            expected=f"one that can {_verb(task)} in {language}",
            found=f"one for {', '.join(languages)}",
            do="take another model or another language",
        )


def _verb(task: str) -> str:
    return "judge sentiment" if task == "sentiment" else task


def answer_batch(
    answerer: Answerer, requests: Sequence[Request], settings: GenerateSettings
) -> list[Reply | Fault]:
    """`answer` for each request, in their order: its reply, or why it has none.

    All are answered at once. Where that fails they are halved, until those are found that fail by
    themselves: what one request does to the model costs no other its answer. UsageError for a task
    or language that the model lacks, which is no fault of an item."""
    for task, language in dict.fromkeys((request.task, request.language) for request in requests):
        require_task(answerer, task, language)
    answers: dict[int, Reply | Fault] = {}
    spans = [(0, len(requests))] if requests else []
    while spans:
        start, end = spans.pop()
        try:
            replies = answerer.answer(requests[start:end], settings)
            if len(replies) != end - start:
                raise Fault("refused", f"{len(replies)} replies for {end - start} requests")
        except Exception as error:  # noqa: BLE001  models raise anything
            if end - start == 1:
                answers[start] = Fault.of(error, requests[start].task)
            else:
                middle = (start + end) // 2
                spans += [(start, middle), (middle, end)]
            continue
        for number, reply in enumerate(replies, start):
            answers[number] = _checked(reply, requests[number].task)
    return [answers[number] for number in range(len(requests))]


def _checked(reply: Reply, task: str) -> Reply | Fault:
    """The reply, or why it is none. `imagine` answers by a picture."""
    if reply.confidence is not None and not np.isfinite(reply.confidence):
        return Fault("not_finite", f"{task}: NaN or infinity")
    if task != "imagine" and not reply.text.strip():
        return Fault("no_words", "the model ended its answer before the first word")
    return reply

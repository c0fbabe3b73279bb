"""What the commands that answer share: their options, and the way from inputs to printed lines.

One input gives one line, its answer; several give a line each, with the input before a tab. An
input that cannot be answered is a line on stderr, and costs no other its answer.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from chiasm.index.ask import BATCH_BYTES
from chiasm.index.query import pixels_of, query_refused
from chiasm.jobs.cli.answer_inputs import Inputs, Item, text_name
from chiasm.jobs.cli.options import ENCODING, prepare_pictures, print_progress
from chiasm.jobs.config import compose
from chiasm.jobs.console import counted, json_line, printable_columns
from chiasm.pipeline.encoders import (
    LANGUAGES,
    MOST_BEAMS,
    Answerer,
    Fault,
    GenerateSettings,
    Reply,
    Request,
    answer_batch,
    language_of,
    load_answerer,
    require_task,
    require_trial,
)
from chiasm.pipeline.errors import ChiasmError, UsageError
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.records import IMAGE

Model = Annotated[str, typer.Option(help="pocket, pocket:DIR or hf:ID_OR_DIR.")]
Language = Annotated[
    str | None, typer.Option(help="Of the answer: en or zh. (default: that of the text, else en)")
]
Beams = Annotated[
    int,
    typer.Option(
        min=1,
        max=MOST_BEAMS,
        help="Answers that are written side by side, to give the most probable one.",
    ),
]
MaxTokens = Annotated[
    int | None, typer.Option(min=1, help="The most tokens of an answer. (default: the model's)")
]
Precision = Annotated[str | None, typer.Option(help="auto, float32 or bfloat16.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object an input.")]
PICTURE_HELP = "A picture's path or URL; - reads lines of stdin."


@dataclass(frozen=True)
class Answering:
    """How a command answers, as its options say. device and precision: None for the settings'.
    drawing: how pictures are drawn, in place of beams and max_tokens."""

    model: str
    language: str | None = None
    beams: int = 1
    max_tokens: int | None = None
    as_json: bool = False
    device: str | None = None
    precision: str | None = None
    preset: str = "laptop"
    assignments: Sequence[str] | None = None
    drawing: GenerateSettings | None = None


Keep = Callable[[Reply], str]
"""A reply -> what the line of its input says; for `imagine`, where its picture was written."""


@dataclass(frozen=True, slots=True)
class Answered:
    """An input that was answered, and what its line says."""

    reply: Reply
    text: str


def reply_text(reply: Reply) -> str:
    return reply.text


def answer_inputs(task: str, inputs: Inputs, options: Answering, keep: Keep = reply_text) -> None:
    """Answer all inputs and print the answers as they come.

    Raises the error of an input that is the only one; ChiasmError at the end where one of several
    was not answered; UsageError for a task or a language that the model lacks."""
    settings = options.drawing or GenerateSettings(options.beams, options.max_tokens)
    answerer = load_model(task, options)
    count = failed = 0
    for items in inputs.batches:
        answers = _answers(answerer, task, items, options.language, settings, keep)
        for item, answer in zip(items, answers, strict=True):
            count += 1
            if isinstance(answer, ChiasmError):
                if not inputs.several:
                    raise answer
                failed += 1
                print_progress(str(answer))
            else:
                for line in _notes(item, answer.reply, task, answerer):
                    print_progress(line)
            if options.as_json:
                print(json_line({**_fields(task, item, answer), "model": answerer.name}))
            elif isinstance(answer, Answered):
                print(printable_columns(_columns(item, answer, inputs.several)))
        sys.stdout.flush()
    if failed:
        raise ChiasmError(task, expected=counted(count, "answer"), found=f"{count - failed:,}")


def _notes(item: Item, reply: Reply, task: str, answerer: Answerer) -> Iterator[str]:
    """What a person should know of an answer."""
    if reply.truncated:
        yield format_truncated(item.name, reply.truncated, task, answerer)
    if reply.endless:
        yield f"{item.name}: {answerer.name} wrote to its limit and did not end its answer"


def format_truncated(label: str, tokens: int, task: str, answerer: Answerer) -> str:
    """The line that says how much of a text was cut."""
    return (
        f"{label}: the last {tokens:,} tokens of the {text_name(task)} were not read, as "
        f"{answerer.name} takes no more"
    )


def encoding_of(options: Answering) -> EncoderSettings:
    """How models run. From now on pictures are prepared as the settings say, too."""
    settings = compose(
        options.preset,
        options.assignments or (),
        {"encoder.device": options.device, "encoder.precision": options.precision},
        uses=ENCODING,
    )
    prepare_pictures(settings)
    return settings.encoder


def unknown_language(option: str, language: str) -> UsageError:
    """The error for a language that no task knows."""
    return UsageError(option, expected="one of " + ", ".join(LANGUAGES), found=language)


def load_model(task: str, options: Answering) -> Answerer:
    """The model. What it lacks is said before stdin is read."""
    if options.language is not None and options.language not in LANGUAGES:
        raise unknown_language("--to" if task == "translate" else "--language", options.language)
    answerer = load_answerer(options.model, encoding_of(options))
    require_task(answerer, task, options.language)
    return answerer


def _answers(
    answerer: Answerer,
    task: str,
    items: Sequence[Item],
    language: str | None,
    settings: GenerateSettings,
    keep: Keep,
) -> list[Answered | ChiasmError]:
    """Each item's answer, or why it has none. A picture is read once for those that share it."""
    answers: dict[int, Answered | ChiasmError] = {}
    pixels: dict[str, Any] = {}
    requests: dict[int, Request] = {}

    def flush() -> None:
        replies = answer_batch(answerer, list(requests.values()), settings)
        require_trial(answerer, list(requests.values()), replies)
        for number, reply in zip(requests, replies, strict=True):
            answers[number] = _answered(reply, items[number], answerer, keep)
        requests.clear()
        pixels.clear()

    for number, item in enumerate(items):
        try:
            requests[number] = _request(answerer, task, item, language, pixels)
        except ChiasmError as error:
            answers[number] = error
        if sum(answerer.cost(IMAGE, image) for image in pixels.values()) > BATCH_BYTES:
            flush()
    flush()
    return [answers[number] for number in range(len(items))]


def _request(
    answerer: Answerer, task: str, item: Item, language: str | None, pixels: dict[str, Any]
) -> Request:
    """What the model is asked of an item. pixels: of the pictures that were read; a new one is put
    there."""
    if item.error is not None:
        raise item.error
    language = language or language_of(item.text)
    require_task(answerer, task, language)
    if item.image is not None and item.image not in pixels:
        pixels[item.image] = pixels_of(item.image, answerer)
    image = None if item.image is None else pixels[item.image]
    return Request(task, language, image, item.text)


def _answered(
    reply: Reply | Fault, item: Item, answerer: Answerer, keep: Keep
) -> Answered | ChiasmError:
    if isinstance(reply, Fault):
        return query_refused(item.name, answerer, reply)
    try:
        return Answered(reply, keep(reply))
    except ChiasmError as error:
        return error


def _fields(task: str, item: Item, answer: Answered | ChiasmError) -> dict[str, Any]:
    """The JSON object of one input, without the model."""
    given = {IMAGE: item.image, text_name(task): item.text}
    fields: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if isinstance(answer, ChiasmError):
        return {**fields, "error": str(answer)}
    fields |= {"answer": answer.text, "confidence": answer.reply.confidence}
    if answer.reply.scores is not None:
        fields["scores"] = dict(answer.reply.scores)
    return {**fields, "truncated": answer.reply.truncated, "endless": answer.reply.endless}


def _columns(item: Item, answer: Answered, several: bool) -> list[str]:
    """The line of one input for a person; the input before the answer where there are several."""
    return [*item.columns, answer.text] if several else [answer.text]

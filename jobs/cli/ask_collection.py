"""`chiasm ask COLLECTION`: questions about a collection, answered from the pictures found."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import typer

from chiasm.index import open_collection
from chiasm.index.ask import AskSettings, CollectionAnswer, ask_collection
from chiasm.index.queries import check_rate
from chiasm.index.sheet import write_sheet
from chiasm.jobs.cli.answering import Answering, load_model
from chiasm.jobs.cli.options import print_progress
from chiasm.jobs.cli.search_outputs import Output, check_output
from chiasm.jobs.console import json_line, lines_of, printable
from chiasm.pipeline.collection import read_identity
from chiasm.pipeline.encoders import GenerateSettings, language_of
from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.storage import Folder, is_remote

FALSE_ALARMS = 0.05
PANEL = "Of a collection"
Sources = Annotated[
    int | None,
    typer.Option("-k", min=1, help="Pictures asked. (default: 5)", rich_help_panel=PANEL),
]
About = Annotated[
    str | None,
    typer.Option(help="What to search for. (default: the question)", rich_help_panel=PANEL),
]
Where = Annotated[
    str | None,
    typer.Option(help="A condition in SQL that pictures fulfil.", rich_help_panel=PANEL),
]
FalseAlarms = Annotated[
    float | None,
    typer.Option(
        metavar="RATE",
        help="Answer nothing where nothing here matches. RATE: the share of searches for nothing "
        "here that are answered all the same; 1 answers always. (default: 0.05 with --about, as "
        "captions calibrate it; else 1)",
        rich_help_panel=PANEL,
    ),
]
SheetFile = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Draw the pictures asked.", rich_help_panel=PANEL),
]


@dataclass(frozen=True, slots=True)
class CollectionOptions:
    """The options that a question about a collection has; None where not given."""

    k: int | None = None
    about: str | None = None
    where: str | None = None
    false_alarms: float | None = None
    sheet: str | None = None

    def require_none(self) -> None:
        """UsageError where one is given beside a picture."""
        names = {"-k": self.k, "--about": self.about, "--where": self.where}
        names |= {"--false-alarms": self.false_alarms, "--sheet": self.sheet}
        given = [name for name, value in names.items() if value is not None]
        if given:
            raise UsageError(
                f"ask {given[0]}",
                expected="a collection",
                found="a picture",
                do="leave it out: it is for questions about a collection",
            )


def is_collection(name: str) -> bool:
    """Whether this is the folder or the URL of a collection. A URL whose last part has the suffix
    of a file, other than .chiasm, is none, and is not asked."""
    last = name.rstrip("/").rpartition("/")[2]
    if is_remote(name) and "." in last and not last.endswith(".chiasm"):
        return False
    folder = Folder(name)
    if folder.local is not None and not folder.local.is_dir():
        return False
    return read_identity(folder) is not None


def answer_from_collection(
    collection: str, question: str | None, options: CollectionOptions, answering: Answering
) -> None:
    """Answer one question, or those of stdin, and print each with its sources."""
    output = Output(
        as_json=answering.as_json, false_alarms=None, sheet=options.sheet, explain_hits=False,
        explain=False, receipt=None, audit=None,
    )  # fmt: skip
    check_output(output, collection, [])
    rate = 1.0 if options.about is None else FALSE_ALARMS
    rate = rate if options.false_alarms is None else options.false_alarms
    if rate != 1:
        check_rate(rate)
    answerer, encoding = load_model("ask", answering)
    searcher = open_collection(collection, encoding=encoding)
    generating = GenerateSettings(answering.beams, answering.max_tokens)
    found: list[CollectionAnswer] = []
    for text in _questions(question):
        settings = AskSettings(
            k=options.k or 5,
            about=options.about,
            where=options.where,
            false_alarms=rate if rate < 1 else None,
            language=answering.language or language_of(text),
        )
        found.append(ask_collection(searcher, answerer, text, settings, generating))
        _print(found[-1], rate, answerer.name, answering.as_json)
        sys.stdout.flush()
    if options.sheet is not None:
        write_sheet([answer.found for answer in found], options.sheet)
        print_progress(f"drew {options.sheet}")


def _questions(question: str | None) -> Iterator[str]:
    if question not in (None, "-"):
        yield question
        return
    if question is None or sys.stdin is None or sys.stdin.isatty():
        raise UsageError("ask", expected="a question, or - and lines on stdin", found="none")
    for lines in lines_of(sys.stdin.fileno(), "replace"):
        yield from filter(None, map(str.strip, lines))


def _print(answer: CollectionAnswer, rate: float, model: str, as_json: bool) -> None:
    if as_json:
        print(json_line({**answer.as_json(), "model": model}))
        return
    if answer.refused:
        print(printable(f"nothing here matches (at a false-alarm rate of {100 * rate:g} %)"))
        return
    print(printable(answer.answer if answer.answer is not None else "no answer"))
    for source in answer.sources:
        said = f"no answer: {source.reason}" if source.answer is None else source.answer
        sure = "" if source.confidence is None else f" ({source.confidence:.2f})"
        result = source.result
        print(printable(f"{result.rank:4d}  {said}{sure}  {result.key}  {result.id}"))

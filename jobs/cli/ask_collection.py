"""`chiasm ask COLLECTION`: questions about a collection, answered from the pictures found."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated

import typer

from chiasm.index import (
    Answer,
    AskSettings,
    CollectionAnswer,
    Searcher,
    ask_collection,
    open_collection,
)
from chiasm.index.ask import searched_for
from chiasm.index.queries import check_rate
from chiasm.index.query import NotCalibrated, TooFewCaptions
from chiasm.index.sheet import Heading, write_sheet
from chiasm.jobs.cli.answering import Answering, encoding_of, format_truncated, load_model
from chiasm.jobs.cli.options import ENCODER_HELP, print_progress
from chiasm.jobs.cli.search_outputs import Output, check_output
from chiasm.jobs.console import counted, json_line, lines_of, printable, shortened
from chiasm.pipeline.collection import read_identity
from chiasm.pipeline.encoders import (
    Answerer,
    ExplainingEncoder,
    GenerateSettings,
    require_explainer,
)
from chiasm.pipeline.errors import ChiasmError, UsageError
from chiasm.pipeline.storage import Folder, is_remote

FALSE_ALARMS = 0.05
PANEL = "Of a collection"
Sources = Annotated[
    int | None,
    typer.Option("-k", min=1, help="Pictures asked. (default: 5)", rich_help_panel=PANEL),
]
About = Annotated[
    str | None,
    typer.Option(
        help="What to search for. (default: what the question is about)", rich_help_panel=PANEL
    ),
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
        "here that are answered all the same, by the captions; 1 answers always. (default: 0.05)",
        rich_help_panel=PANEL,
    ),
]
SheetFile = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", help="Draw the pictures asked, and their answers.", rich_help_panel=PANEL
    ),
]
ExplainHits = Annotated[
    bool,
    typer.Option(
        "--explain-hits",
        help="Draw on --sheet which patches of each picture it was found by.",
        rich_help_panel=PANEL,
    ),
]

CollectionEncoder = Annotated[
    str | None,
    typer.Option("--encoder", metavar="NAME", help=ENCODER_HELP, rich_help_panel=PANEL),
]


@dataclass(frozen=True, slots=True)
class CollectionOptions:
    """The options that a question about a collection has; None where not given."""

    k: int | None = None
    about: str | None = None
    where: str | None = None
    false_alarms: float | None = None
    sheet: str | None = None
    explain_hits: bool = False
    encoder: str | None = None

    def require_none(self, found: str) -> None:
        """UsageError where one is given beside what is no collection; found: what it is."""
        names = {"-k": self.k, "--about": self.about, "--where": self.where}
        names |= {"--false-alarms": self.false_alarms, "--sheet": self.sheet}
        names |= {"--explain-hits": self.explain_hits or None, "--encoder": self.encoder}
        given = [name for name, value in names.items() if value is not None]
        if given:
            raise UsageError(
                f"ask {given[0]}",
                expected="a collection",
                found=found,
                do="leave it out: it is for questions about a collection",
            )


def is_collection(name: str) -> bool:
    """Whether this is the folder or the URL of a collection. A URL of a web server, which lists
    nothing, is none, nor is one whose last part has the suffix of a file, other than .chiasm: they
    are not asked."""
    if name.lower().startswith(("http://", "https://")):
        return False
    last = name.rstrip("/").rpartition("/")[2]
    if is_remote(name) and "." in last and not last.endswith(".chiasm"):
        return False
    folder = Folder(name)
    if folder.local is not None and not folder.local.is_dir():
        return False
    return read_identity(folder) is not None


@dataclass
class _Asking:
    """What all questions share. rate: of false alarms, 1 to answer always."""

    searcher: Searcher
    answerer: Answerer
    options: CollectionOptions
    answering: Answering
    rate: float

    def answer(self, question: str) -> CollectionAnswer:
        """Where nothing can say whether anything matches, and nobody has given a rate, all is
        answered from then on, and a line says so."""
        settings = AskSettings(
            k=self.options.k or 5,
            about=self.options.about,
            where=self.options.where,
            false_alarms=self.rate if self.rate < 1 else None,
            language=self.answering.language,
        )
        generating = GenerateSettings(self.answering.beams, self.answering.max_tokens)
        try:
            return ask_collection(self.searcher, self.answerer, question, settings, generating)
        except (TooFewCaptions, NotCalibrated) as error:
            if self.options.false_alarms is not None:
                raise
            # Without its advice, to search without a rate: that is what happens here.
            why = ChiasmError(error.what, expected=error.expected, found=error.found)
            print_progress(f"all is answered, whether anything matches or not: {why}")
            self.rate = 1.0
            return self.answer(question)


def answer_from_collection(
    collection: str, question: str | None, options: CollectionOptions, answering: Answering
) -> None:
    """Answer one question, or those of stdin, and print each with its sources.

    Raises the error of a question that is the only one; ChiasmError at the end where one of several
    has no answer. What cannot be used is refused before the model is loaded."""
    output = Output(
        as_json=answering.as_json, false_alarms=None, sheet=options.sheet,
        explain_hits=options.explain_hits, explain=False, receipt=None, audit=None,
    )  # fmt: skip
    check_output(output, collection, {})
    rate = FALSE_ALARMS if options.false_alarms is None else options.false_alarms
    if rate != 1:
        check_rate(rate, up_to="at most")
    if options.about is not None and not options.about.strip():
        raise UsageError("--about", expected="what to search for", found="blank words")
    several = question in (None, "-")
    if several:
        _require_lines(question)
    elif question is not None:
        if not question.strip():
            raise UsageError("ask", expected="a question", found="a blank one")
        searched_for(question, options.about, rate if rate < 1 else None)
    searcher = open_collection(collection, encoding=encoding_of(answering), encoder=options.encoder)
    if options.where is not None:
        searcher.filter(options.where)
    encoder = searcher.encoder  # every question is encoded
    explainer = require_explainer(encoder) if options.explain_hits else None
    asking = _Asking(searcher, load_model("ask", answering), options, answering, rate)
    _answer_all(asking, _questions(question), several, explainer)


def _answer_all(
    asking: _Asking,
    questions: Iterator[str],
    several: bool,
    explainer: ExplainingEncoder | None,
) -> None:
    found: list[CollectionAnswer] = []
    sheet = asking.options.sheet
    count = failed = 0
    for text in questions:
        count += 1
        try:
            answer = asking.answer(text)
        except ChiasmError as error:
            if not several:
                raise
            failed += 1
            _print_error(text, error, asking)
        else:
            failed += answer.answer is None and not answer.refused
            if sheet is not None:
                found.append(answer)
            _print(answer, asking, several)
        sys.stdout.flush()
    if sheet is not None:
        write_sheet([_drawn(one) for one in found], sheet, explainer, list(map(_heading, found)))
        print_progress(f"drew {sheet}")
    if failed:
        raise ChiasmError("ask", expected=counted(count, "answer"), found=f"{count - failed:,}")


def _require_lines(question: str | None) -> None:
    if question is None or sys.stdin is None or sys.stdin.isatty():
        raise UsageError("ask", expected="a question, or - and lines on stdin", found="none")


def _questions(question: str | None) -> Iterator[str]:
    if question not in (None, "-"):
        yield question
        return
    assert sys.stdin is not None
    for lines in lines_of(sys.stdin.fileno(), "replace"):
        yield from filter(None, map(str.strip, lines))


def _print_error(question: str, error: ChiasmError, asking: _Asking) -> None:
    """As `chiasm ask IMAGE -` says it: on stderr, with --json in its place too."""
    print_progress(f"{question}: {error}")
    if asking.answering.as_json:
        fields = {"question": question, "error": str(error), "model": asking.answerer.name}
        print(json_line(fields))


def _print(answer: CollectionAnswer, asking: _Asking, several: bool) -> None:
    if answer.truncated:
        print_progress(
            format_truncated(shortened(answer.question), answer.truncated, "ask", asking.answerer)
        )
    if answer.not_judged:
        print_progress(
            f"{answer.question}: answered whether anything matches or not, as the captions are in "
            "another script"
        )
    if asking.answering.as_json:
        print(json_line({**answer.as_json(), "model": asking.answerer.name}))
        return
    if several:
        print(printable(answer.question))
    if answer.refused:
        print(printable(f"nothing here matches (at a false-alarm rate of {100 * asking.rate:g} %)"))
        return
    print(printable(answer.answer if answer.answer is not None else "no answer"))
    for source in answer.sources:
        said = f"no answer: {source.reason}" if source.answer is None else source.answer
        sure = "" if source.confidence is None else f" ({source.confidence:.2f})"
        result = source.result
        print(printable(f"{result.rank:4d}  {said}{sure}  {result.key}  {result.id}"))


def _drawn(answer: CollectionAnswer) -> Answer:
    """The pictures to draw: none of a question that was refused."""
    return replace(answer.found, results=()) if answer.refused else answer.found


def _heading(answer: CollectionAnswer) -> Heading:
    """The question, its answer, and under each picture what was answered from it."""
    line = "nothing here matches" if answer.refused else answer.answer or "no answer"
    notes = tuple(source.answer or "no answer" for source in answer.sources)
    return Heading(answer.question, line, notes)

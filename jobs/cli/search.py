"""`chiasm search`."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Annotated

import typer

from chiasm.index import open_collection
from chiasm.index.results import Answer, Query, Rerank
from chiasm.index.sheet import write_sheet
from chiasm.jobs.cli.options import Collection
from chiasm.jobs.console import printable
from chiasm.pipeline.errors import UsageError

HELP = """
  chiasm search photos.chiasm "a red boat under a moon" -k 5 --sheet hits.png
  chiasm search photos.chiasm --image boat.jpg --column text
  chiasm search photos.chiasm --json < queries.txt
  chiasm search photos.chiasm "a red boat" --rerank match:20

Without words and picture, queries are read from stdin, one a line. Columns: image finds pictures,
text finds captions, joint finds pairs. Words and a picture together are searched by their mean."""
BATCH = 64  # lines of stdin that are encoded together


def search(
    collection: Collection,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[WORDS]", help="In quotes; - reads lines of stdin."),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many results.")] = 10,
    image: Annotated[str | None, typer.Option(help="A picture to search by.")] = None,
    column: Annotated[str, typer.Option(help="image, text or joint.")] = "image",
    rerank: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STAGE",
            help="vectors:N, match:N or st:NAME:N: score the first N again. Can be repeated.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a query.")] = False,
    sheet: Annotated[
        str | None, typer.Option(help="Draw the results as one picture, a PNG.")
    ] = None,
    allow_stale: Annotated[
        bool, typer.Option(help="Search an index that does not cover all embeddings.")
    ] = False,
) -> None:
    text = _one_text(collection, words or [])
    searcher = open_collection(collection, allow_stale=allow_stale)
    from_stdin = text == "-" or (text is None and image is None)
    answers: list[Answer] = []
    stages = tuple(Rerank.parse(stage) for stage in rerank or ())
    asking = partial(Query, image=image, column=column, k=k, rerank=stages)
    for queries in _batches(text, asking, from_stdin):
        answered = searcher.search_many(queries)
        for answer in answered:
            print(
                json.dumps(answer.as_json(), ensure_ascii=False, allow_nan=False)
                if as_json
                else format_answer(answer)
            )
        sys.stdout.flush()
        if sheet is not None:
            answers += answered
    if sheet is not None:
        write_sheet(answers, sheet)
        print(f"drew {sheet}", file=sys.stderr)


def _one_text(collection: str, words: list[str]) -> str | None:
    """The query's text; UsageError for words that the shell has split."""
    if len(words) > 1:
        whole = " ".join(words)
        raise UsageError(
            "WORDS",
            expected="one text",
            found=f"{len(words)} words",
            do=f"put the words in quotes: chiasm search {shlex.quote(collection)} "
            f"{shlex.quote(whole)}",
        )
    return words[0] if words else None


def _batches(
    text: str | None, asking: Callable[[str | None], Query], from_stdin: bool
) -> Iterator[list[Query]]:
    """Queries to answer together: the one of the command line, or what has come in on stdin."""
    if not from_stdin:
        yield [asking(text)]
        return
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError(
            "search", expected="words, --image FILE, or queries on stdin", found="none of them"
        )
    for lines in _arriving(sys.stdin.fileno()):
        words = [line.strip() for line in lines if line.strip()]
        for start in range(0, len(words), BATCH):
            some = words[start : start + BATCH]
            yield [asking(line) for line in some]


def _arriving(stdin: int) -> Iterator[list[str]]:
    """Whole lines as they arrive: whoever writes one query and waits is answered at once."""
    rest = b""
    while chunk := os.read(stdin, 1 << 16):
        *lines, rest = (rest + chunk).split(b"\n")
        yield [line.decode("utf-8", "replace") for line in lines]
    yield [rest.decode("utf-8", "replace")]


def format_answer(answer: Answer) -> str:
    """An answer as lines for a person."""
    spent = sum(answer.seconds.values())
    lines = [f"{answer.query} in {answer.query.column}: {spent * 1000:.0f} ms"]
    for result in answer:
        caption = result.caption if result.caption is not None else "(no caption)"
        lines.append(f"{result.rank:4d}  {result.score:6.3f}  {caption}")
        lines.append(f"              {result.key}  {result.id}")
    return "\n".join(map(printable, lines))

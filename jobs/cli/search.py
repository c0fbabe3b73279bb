"""`chiasm search`."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Annotated

import typer

from chiasm.index import Answer, Query, RerankStage, check_rate, open_collection
from chiasm.index.query import check_stages
from chiasm.index.sheet import sheet_format, write_sheet
from chiasm.jobs.cli.options import ENCODING, Assignments, Collection, Device, Preset
from chiasm.jobs.config import compose
from chiasm.jobs.console import json_line, lines_of, printable
from chiasm.pipeline.collection import read_identity
from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.storage import Folder

HELP = """
  chiasm search photos.chiasm "a red boat under a moon" -k 5 --sheet hits.png
  chiasm search photos.chiasm --image boat.jpg --column text
  chiasm search photos.chiasm --json < queries.txt
  chiasm search photos.chiasm "a red boat" --rerank match:20
  chiasm search photos.chiasm "bus 42 at the station" --hybrid

Without text and picture, queries are read from stdin, one a line. Columns: image finds pictures,
text finds captions, joint finds pairs. A text and a picture together are searched by the mean of
their vectors."""
BATCH = 64  # lines of stdin that are encoded together

Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="[TEXT]", help="In quotes; - reads lines of stdin."),
]
ImageQuery = Annotated[
    str | None,
    typer.Option(help="A picture to search by: a path, or a URL of http, https or s3."),
]
Rerank = Annotated[
    list[str] | None,
    typer.Option(
        metavar="STAGE",
        help="vectors:N, match:N or st:MODEL:N: score the first N again. Can be repeated.",
    ),
]


Column = Annotated[
    str, typer.Option(help="image, text, joint, or another modality of the encoder.")
]
Hybrid = Annotated[bool, typer.Option("--hybrid", help="Find captions that have the words, too.")]
Sheet = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", help="Draw the results as one picture: .png, .jpg, .jpeg or .webp."
    ),
]
FalseAlarms = Annotated[
    float | None,
    typer.Option(
        metavar="RATE",
        help="Say where nothing here matches. RATE, such as 0.05: the share of queries without a "
        "match for which it is not said. The first such query calibrates the column.",
    ),
]


def search(
    collection: Collection,
    words: Words = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many results.")] = 10,
    image: ImageQuery = None,
    column: Column = "image",
    rerank: Rerank = None,
    hybrid: Hybrid = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a query.")] = False,
    false_alarms: FalseAlarms = None,
    sheet: Sheet = None,
    allow_stale: Annotated[
        bool, typer.Option(help="Search an index that does not cover all embeddings.")
    ] = False,
    device: Device = None,
    preset: Preset = "laptop",
    assignments: Assignments = None,
) -> None:
    settings = compose(
        preset, assignments or (), {"encoder.device": device}, uses=(*ENCODING, "index.nprobe")
    )
    if sheet is not None:
        sheet_format(sheet)  # refused now rather than after the search
    calibrated = false_alarms is not None and check_rate(false_alarms)
    _require_collection_first(collection, words or [], image)
    text = _one_text(collection, words or [])
    stages = tuple(RerankStage.parse(stage) for stage in rerank or ())
    check_stages(stages)
    searcher = open_collection(collection, allow_stale=allow_stale, encoding=settings.encoder)
    from_stdin = text == "-" or (text is None and image is None)
    answers: list[Answer] = []
    nprobe = settings.index.nprobe or None
    make_query = partial(
        Query,
        image=image,
        column=column,
        k=k,
        nprobe=nprobe,
        rerank=stages,
        hybrid=hybrid,
        calibrated=calibrated,
    )
    for queries in _batches(text, make_query, from_stdin):
        batch = searcher.search_many(queries)
        _print_answers(batch, as_json, false_alarms)
        if sheet is not None:
            answers += batch
    if sheet is not None:
        write_sheet(answers, sheet)
        print(printable(f"drew {sheet}"), file=sys.stderr)


def _print_answers(answers: list[Answer], as_json: bool, false_alarms: float | None) -> None:
    for answer in answers:
        if as_json:
            print(json_line(answer.as_json()))
        else:
            if false_alarms is not None and answer.nothing_matches(false_alarms):
                rate = f"{100 * false_alarms:g} %"
                print(printable(f"nothing here matches (at a false-alarm rate of {rate})"))
            for line in format_answer(answer).splitlines():
                print(printable(line))
    sys.stdout.flush()


def _require_collection_first(collection: str, words: list[str], image: str | None) -> None:
    """UsageError where the first argument is a text, or a part of the collection's name: no such
    folder, and a space in it, a collection as the last argument, or one whose name the shell has
    split."""
    if "://" in collection or os.path.exists(collection):
        return
    options = ["--image", image] if image is not None else []
    for count in range(1, len(words) + 1):
        whole = " ".join([collection, *words[:count]])
        if _is_collection(whole):
            text = [" ".join(words[count:])] if words[count:] else []
            raise UsageError(
                "COLLECTION",
                expected="its name in quotes, as it has spaces",
                found=f"{count + 1} words",
                do=f"type: {shlex.join(['chiasm', 'search', whole, *text, *options])}",
            )
    last = words[-1] if words else ""
    swapped = _is_collection(last)
    if not swapped and " " not in collection:
        return
    place = last if swapped else "COLLECTION"
    text = "TEXT" if words and not swapped else " ".join([collection, *words[:-1]])
    raise UsageError(
        "COLLECTION",
        expected="the collection first, then the text",
        found=f"{collection!r}, which is no collection",
        do=f"type: {shlex.join(['chiasm', 'search', place, text, *options])}",
    )


def _is_collection(path: str) -> bool:
    return os.path.isdir(path) and read_identity(Folder(path)) is not None


def _one_text(collection: str, words: list[str]) -> str | None:
    """The query's text; UsageError for words that the shell has split."""
    if len(words) > 1:
        whole = " ".join(words)
        raise UsageError(
            "TEXT",
            expected="one text",
            found=f"{len(words)} words",
            do=f"put the words in quotes: chiasm search {shlex.quote(collection)} "
            f"{shlex.quote(whole)}",
        )
    return words[0] if words else None


def _batches(
    text: str | None, make_query: Callable[[str | None], Query], from_stdin: bool
) -> Iterator[list[Query]]:
    """Queries to answer together: the one of the command line, or those that arrived on stdin."""
    if not from_stdin:
        yield [make_query(text)]
        return
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError(
            "search", expected="a text, --image FILE, or queries on stdin", found="none of them"
        )
    for lines in lines_of(sys.stdin.fileno(), "replace"):
        texts = list(filter(None, map(str.strip, lines)))
        for start in range(0, len(texts), BATCH):
            yield [make_query(line) for line in texts[start : start + BATCH]]


def format_answer(answer: Answer) -> str:
    """An answer as lines for a person. A line separates the results that the last stage of
    reranking did not score."""
    lines = [f"{answer.query} in {answer.query.column}: {answer.time_label()}"]
    stages = answer.query.stages
    separated = not stages
    for result in answer:
        if not separated and not answer.is_reranked(result):
            lines.append(f"      not scored by {stages[-1]}, ordered by {result.scored_by}:")
            separated = True
        caption = result.caption if result.caption is not None else "(no caption)"
        lines.append(f"{result.rank:4d}  {result.score:6.3f}  {caption}")
        lines.append(f"              {result.key}  {result.id}")
    return "\n".join(map(printable, lines))

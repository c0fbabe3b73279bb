"""What the commands that answer share where they are given shards and `--to FOLDER`."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Annotated

import typer

from chiasm.jobs.answer_shards import USES, AnswerRequest, answer_shards
from chiasm.jobs.cli.answering import Answering, unknown_language
from chiasm.jobs.cli.options import ENCODING, list_command_shards, print_progress
from chiasm.jobs.config import Settings, compose
from chiasm.jobs.console import json_line, printable
from chiasm.pipeline.answers import AnswerSettings, AnswersSummary, unanswered
from chiasm.pipeline.collection import read_identity
from chiasm.pipeline.encoders import LANGUAGES, GenerateSettings
from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.records import Shard
from chiasm.pipeline.shards import TAR_SUFFIXES
from chiasm.pipeline.storage import Folder, canonical_url, display_name

MOST_LISTED = 20  # samples without an answer, printed one by one

PANEL = "Of shards"
To = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER",
        help="Answer about shards, into this folder or URL.",
        rich_help_panel=PANEL,
    ),
]
WriteShards = Annotated[
    bool,
    typer.Option(
        "--shards", help="Write the shards, too, with the captions.", rich_help_panel=PANEL
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        help="A running Ray: host:port or auto. (default: none, or one started here)",
        rich_help_panel=PANEL,
    ),
]
MaxLoss = Annotated[
    float | None,
    typer.Option(
        help="Share of answers that may be missing. (default: 0.01)", rich_help_panel=PANEL
    ),
]
AllowDamaged = Annotated[
    bool,
    typer.Option(
        "--allow-damaged",
        help="Shards that are cut or damaged are no failure.",
        rich_help_panel=PANEL,
    ),
]
AllowQuery = Annotated[
    bool,
    typer.Option(
        "--allow-query",
        help="Take URLs with any query. Footers keep them, so none may be a secret.",
        rich_help_panel=PANEL,
    ),
]


@dataclass(frozen=True)
class ShardOptions:
    """The options of a command that are about shards alone."""

    write_shards: bool = False
    address: str | None = None
    max_loss: float | None = None
    allow_damaged: bool = False
    allow_query: bool = False

    def require_none(self) -> None:
        """UsageError where one of them is given to a command that has no shards."""
        for option in fields(self):
            if getattr(self, option.name) not in (None, False):
                name = "shards" if option.name == "write_shards" else option.name
                raise UsageError(
                    f"--{name.replace('_', '-')}",
                    expected="it with shards",
                    found="no folder for their answers",
                    do="add --to FOLDER",
                )


def require_no_shards(
    names: Sequence[str],
    expected: str,
    do: str = "for shards add --to FOLDER",
    *,
    texts: bool = False,
) -> None:
    """UsageError where an argument of a command without a folder for answers is a shard. expected:
    what it takes; texts: the arguments may be texts, which may end like the name of a shard."""
    for name in filter(_is_text_shard if texts else _is_shard, names):
        where = display_name(canonical_url(name, allow_query=True)) if "://" in name else name
        raise UsageError(where, expected=expected, found="a shard", do=do)


def require_no_folders(pictures: Sequence[str], expected: str = "a picture") -> None:
    """UsageError where a picture is a folder: of pictures, of shards, or a collection. expected:
    what the command takes."""
    for name in filter(os.path.isdir, pictures):
        found, do = "a folder", "name the pictures in it"
        if read_identity(Folder(name)) is not None:
            found, do = "a collection", "ask it by chiasm ask COLLECTION QUESTION"
        elif any(file.lower().endswith(TAR_SUFFIXES) for file in Folder(name).list()):
            do = "for the shards in it add --to FOLDER"
        raise UsageError(name, expected=expected, found=found, do=do)


def _is_shard(name: str) -> bool:
    """By its suffix; that of a URL stands before its query."""
    path = name.partition("?")[0] if "://" in name else name
    return path.lower().endswith(TAR_SUFFIXES)


def _is_text_shard(name: str) -> bool:
    """A text may end in such a suffix, too: a shard exists, or is one word with a folder or a glob
    in it."""
    is_name = len(name.split()) == 1 and any(sign in name for sign in "/*?[{")
    return _is_shard(name) and (is_name or os.path.exists(name))


def answer_command_shards(
    task: str,
    shards: list[str],
    to: str,
    options: Answering,
    shard_options: ShardOptions,
    question: str | None = None,
) -> None:
    """Answer about shards, print the summary, and raise the error that the run ends with."""
    if options.language is not None and options.language not in LANGUAGES:
        raise unknown_language("--language", options.language)
    settings = compose(
        options.preset,
        options.assignments or (),
        {
            "encoder.device": options.device,
            "encoder.precision": options.precision,
            "max_loss": shard_options.max_loss,
        },
        uses=(*ENCODING, *USES),
    )
    request = AnswerRequest(
        shards=list_command_shards(shards, shard_options.allow_query),
        to=to,
        model=options.model,
        answers=_answer_settings(task, options, settings, question),
        settings=settings,
        write_shards=shard_options.write_shards,
        address=shard_options.address,
    )
    with contextlib.redirect_stdout(sys.stderr):  # what Ray prints is no result
        summary = answer_shards(request, print_progress)
    if options.as_json:
        print(json_line(summary.as_json()))
    else:
        for line in format_summary(summary, task, to):
            print(printable(line))
    _print_odd(summary)
    allow_damaged = shard_options.allow_damaged
    error = summary.error(task, settings.max_loss, allow_damaged=allow_damaged)
    if error is not None:
        if summary.loss > settings.max_loss:
            _print_unanswered(Folder(to), request.shards)
        raise error


def _answer_settings(
    task: str, options: Answering, settings: Settings, question: str | None
) -> AnswerSettings:
    return AnswerSettings(
        task=task,
        language=options.language,
        question=question,
        generate=GenerateSettings(options.beams, options.max_tokens),
        read=settings.read,
        decode=settings.decode,
        batch=settings.batch,
    )


def format_summary(summary: AnswersSummary, task: str, to: str) -> list[str]:
    """The summary in lines for a person."""
    new = f", {summary.uncaptioned:,} about samples without a caption" if task == "caption" else ""
    lines = [f"{summary.answers:,} answers about {summary.samples:,} samples in {to}{new}"]
    if summary.reasons:
        reasons = ", ".join(
            f"{count:,} {reason}" for reason, count in summary.reasons.most_common()
        )
        lines.append(f"without an answer: {reasons}")
    counted = f"shards: {summary.done} done, {summary.skipped} were done already"
    counted += f", {len(summary.damaged)} damaged" if summary.damaged else ""
    counted += f", {len(summary.failed)} not read" if summary.failed else ""
    return [*lines, counted]


def _print_odd(summary: AnswersSummary) -> None:
    """Shards that are damaged, and those that failed, on stderr."""
    for what, entries in (("damaged", summary.damaged), ("not read", summary.failed)):
        for entry in entries:
            where = display_name(entry["shard"])
            print_progress(f"{what} {where}: {entry['reason'].removeprefix(f'{where}: ')}")


def _print_unanswered(folder: Folder, shards: Sequence[Shard]) -> None:
    """The first samples without an answer, on stderr."""
    left = MOST_LISTED
    for shard in shards:
        for row in unanswered(folder, shard.id, left):
            reason = f"{row['reason']} {row['detail'] or ''}".strip()
            print_progress(f"no answer: {display_name(shard.url)} {row['key']}: {reason}")
            left -= 1
        if not left:
            print_progress("and perhaps more: the rows of the Parquet files that have a reason")
            return

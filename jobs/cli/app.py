"""The command line: which commands there are, and how they end. Each lives in a file of its own.

A command's module is imported only when that command is called (`command_group.py`), so `chiasm
--help` and shell completion of names load no torch, no Ray and no pyarrow. Results go to stdout;
progress, log lines and errors to stderr. Exit codes: 0 done, 1 not all of it was done, 2 wrong
usage, 130 and 143 stopped by ctrl-C and SIGTERM.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, NoReturn

import platformdirs
import typer

from chiasm.jobs.cli.command_group import CONTEXT, Group, lazy_group
from chiasm.jobs.cli.logs import LogFormat, LogLevel, set_up_logging, unseen_log_file
from chiasm.jobs.console import (
    divert_c_output,
    open_closed_streams,
    printable,
    take_any_text,
)
from chiasm.jobs.signals import STOPPING, Stopped
from chiasm.pipeline.errors import ChiasmError, UsageError

LOG = logging.getLogger(__name__)


def _refuse_preset(ctx: typer.Context, value: str | None) -> None:
    """UsageError for `train --preset`: of earlier versions, or before the recipe's name."""
    if value is None:
        return
    earlier = value in ("pocket", "two-tower")
    raise UsageError(
        f"train --preset {value}",
        expected="the recipe's name after train, options after that",
        do=f"type: chiasm train {value if earlier else f'pocket --preset {value}'} ...",
    )


def _train_options(
    preset: Annotated[
        str | None, typer.Option(hidden=True, is_eager=True, callback=_refuse_preset)
    ] = None,
) -> None:
    """`chiasm train` itself has no option; this one is hidden."""


COMMANDS: dict[str, str | Group] = {  # in the order of --help
    "demo": "Make a small world of pictures, embed it, index it, search it.",
    "embed": "Embed shards into a collection, on this machine or a cluster.",
    "status": "Show what a collection and its index hold, what was dropped, and which runs are on.",
    "index": Group(
        "Build the index of a collection, and edit it while it answers.",
        "",
        {
            "build": "Build the index of a collection and make it live.",
            "add": "Add the rows of shards that the index does not cover yet.",
            "delete": "Leave rows out of every answer.",
            "compact": "Write sparse and small segments of an index anew.",
            "rollback": "Make an earlier generation of the index live again.",
            "status": "Show the generations of an index.",
        },
    ),
    "search": "Search a collection by a text, by a picture, or by both.",
    "replay": "Search again what a receipt says, and say what has changed.",
    "match": "Score how well texts describe a picture.",
    "ask": "Answer a question about a picture, or from a collection.",
    "caption": "Say what a picture shows.",
    "translate": "Translate a text that belongs to a picture.",
    "sentiment": "Say what sentiment a text and its picture have together.",
    "imagine": "Draw what a text says.",
    "explain": "Show which patches and words a score rests on.",
    "train": Group(
        "Train a model that embeds, fuses and matches.",
        """Kill it and run it again: it goes on from its last checkpoint and ends with the same
weights. The folder of --to is an encoder; log.jsonl there is the log of the training, report.json
its quality on data that it did not learn from.""",
        {
            "pocket": "Train the encoder that ships, from scenes drawn while it learns.",
            "two-tower": "Join an image model and a text model by what your shards teach.",
            "joint": "Train a joint network on your shards, or on top of any encoder.",
        },
        _train_options,
    ),
    "filter": "Leave out captions that do not describe their pictures.",
    "check": "Verify a collection and its index.",
    "relocate": "Follow shards that were moved, without embedding them again.",
    "forget": "Take the rows of shards out of a collection.",
    "submit": "Run a chiasm command as a job on a Ray cluster.",
}


def load_command(name: str) -> tuple[Callable[..., None], str]:
    """The function of a command and the details of its help, by its full name."""
    match name:
        case "demo":
            from chiasm.jobs.cli import demo

            return demo.demo, demo.HELP
        case "embed":
            from chiasm.jobs.cli import embed

            return embed.embed, embed.HELP
        case "status":
            from chiasm.jobs.cli import status

            return status.status, status.HELP
        case "search":
            from chiasm.jobs.cli import search

            return search.search, search.HELP
        case "replay":
            from chiasm.jobs.cli import replay

            return replay.replay_, replay.HELP
        case "match":
            from chiasm.jobs.cli import match

            return match.match, match.HELP
        case "explain":
            from chiasm.jobs.cli import explain

            return explain.explain, explain.HELP
        case "train pocket" | "train two-tower" | "train joint":
            return _load_train(name)
        case "filter":
            from chiasm.jobs.cli import filter

            return filter.filter_, filter.HELP
        case "submit":
            from chiasm.jobs.cli import submit

            return submit.submit, submit.HELP
    if name.startswith("index "):
        return _load_index(name)
    return _load_answering(name) or _load_upkeep(name)


def _load_train(name: str) -> tuple[Callable[..., None], str]:
    """`load_command` of the recipes of `train`."""
    match name:
        case "train pocket":
            from chiasm.jobs.cli import train_pocket

            return train_pocket.train_pocket, train_pocket.HELP
        case "train two-tower":
            from chiasm.jobs.cli import train_two_tower

            return train_two_tower.train_two_tower, train_two_tower.HELP
        case _:
            from chiasm.jobs.cli import train_joint

            return train_joint.train_joint, train_joint.HELP


def _load_answering(name: str) -> tuple[Callable[..., None], str] | None:
    """The same of the commands that answer."""
    match name:
        case "ask":
            from chiasm.jobs.cli import ask

            return ask.ask, ask.HELP
        case "caption":
            from chiasm.jobs.cli import caption

            return caption.caption, caption.HELP
        case "translate":
            from chiasm.jobs.cli import translate

            return translate.translate, translate.HELP
        case "sentiment":
            from chiasm.jobs.cli import sentiment

            return sentiment.sentiment, sentiment.HELP
        case "imagine":
            from chiasm.jobs.cli import imagine

            return imagine.imagine, imagine.HELP
    return None


def _load_index(name: str) -> tuple[Callable[..., None], str]:
    """The same of the commands of `chiasm index`."""
    if name == "index build":
        from chiasm.jobs.cli import index

        return index.build, index.HELP
    from chiasm.jobs.cli import index_edit

    return {
        "index add": (index_edit.add, index_edit.ADD_HELP),
        "index delete": (index_edit.delete, index_edit.DELETE_HELP),
        "index compact": (index_edit.compact, index_edit.COMPACT_HELP),
        "index rollback": (index_edit.rollback, index_edit.ROLLBACK_HELP),
        "index status": (index_edit.status, index_edit.STATUS_HELP),
    }[name]


def _load_upkeep(name: str) -> tuple[Callable[..., None], str]:
    """The same of the commands that keep a collection true."""
    match name:
        case "check":
            from chiasm.jobs.cli import check

            return check.check, check.HELP
        case "relocate":
            from chiasm.jobs.cli import relocate

            return relocate.relocate_, relocate.HELP
        case "forget":
            from chiasm.jobs.cli import forget

            return forget.forget_, forget.HELP
    raise LookupError(name)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit."""
    try:
        prepare_process()
        try:
            application()(args=None if argv is None else list(argv), prog_name="chiasm")
        finally:
            sys.stdout.flush()  # here, where a full disk can still be reported
    except ChiasmError as error:
        _print_error(str(error))
        if error.exit_code == 1 and (log := unseen_log_file()) is not None:
            print(printable(f"log: {log}"), file=sys.stderr)
        _leave(error.exit_code)
    except Stopped as stopped:
        _print_error(stopped.message or "stopped; run the same command again to go on")
        _leave(stopped.exit_code)
    except BrokenPipeError:
        _leave(1)  # stdout's reader is gone
    except OSError as error:
        _print_error(f"{error.filename or 'output'}: {error.strerror or error}")
        _leave(1)
    except MemoryError:
        _print_error("this command: expected memory to go on, found none left")
        _leave(1)
    except Exception as error:  # noqa: BLE001  a fault of ours: its traceback goes to the log file
        LOG.info("%s", traceback.format_exc())
        where = unseen_log_file()
        _print_error(
            f"a fault of chiasm: {type(error).__name__}: {error}; please report it"
            + (f" with {where}" if where else "")
        )
        _leave(1)


def prepare_process() -> None:
    """Signals, text streams that take any text, and C libraries' output; once, before all else."""
    open_closed_streams()
    STOPPING.install()
    take_any_text()
    try:
        Path.home()
    except RuntimeError:  # a user without a home: a place where nothing can be kept, not ./~
        os.environ["HOME"] = "/nonexistent"
    _require_folder()
    # Threads that wait in a loop take the cores from those that decode and from other processes.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    divert_c_output(platformdirs.user_cache_path("chiasm", appauthor=False) / "c-output.log")


def _require_folder() -> None:
    """UsageError where the current folder is gone: no relative path leads anywhere."""
    try:
        os.getcwd()
    except OSError as error:
        raise UsageError(
            "the current folder", expected="one that is there", found=str(error.strerror), do="cd"
        ) from error


def _print_error(message: str) -> None:
    with contextlib.suppress(OSError):  # stderr is gone too
        print(printable(f"chiasm: {message}"), file=sys.stderr, flush=True)


def _leave(code: int) -> NoReturn:
    """Exit without a second try to write what stdout still holds."""
    with contextlib.suppress(OSError, ValueError):  # not on a descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def application() -> typer.Typer:
    """The Typer application; its commands are imported when they are called."""
    app = typer.Typer(
        name="chiasm",
        cls=lazy_group(COMMANDS, load_command),
        help="Cross-modal retrieval: WebDataset shards in, answers out.",
        epilog="Begin with: chiasm demo",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings=CONTEXT,
    )
    app.callback()(options)
    return app


def _version(wanted: bool) -> None:
    if wanted:
        print(printable(f"chiasm {metadata.version('chiasm')}"))
        raise typer.Exit


def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_version)
    ] = False,
    log_level: Annotated[
        LogLevel, typer.Option(help="The least severe log lines shown on stderr.")
    ] = LogLevel.warning,
    log_format: Annotated[
        LogFormat,
        typer.Option(help="Format of log lines on stderr: text or JSON, one object a line."),
    ] = LogFormat.text,
) -> None:
    """Options before the command."""
    set_up_logging(log_level, log_format)

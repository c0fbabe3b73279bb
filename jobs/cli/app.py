"""The command line: which commands there are, and how they end. Each lives in a file of its own.

A command's module is imported only when that command is called, so `chiasm --help` and `chiasm
status` cost no torch and no Ray. Results go to stdout, progress and errors to stderr. Exit codes: 0
done, 1 not all of it was done, 2 wrong usage, 130 and 143 stopped by ctrl-C and SIGTERM.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Annotated, NoReturn

import platformdirs
import typer

from chiasm.jobs.console import divert_c_output, printable
from chiasm.jobs.signals import STOPPING, Stopped
from chiasm.pipeline.errors import ChiasmError

COMMANDS = {  # name -> (module with `register(app)`, what it does)
    "demo": ("chiasm.jobs.cli.demo", "Make a small world of pictures, embed it, index it, ask it."),
    "embed": (
        "chiasm.jobs.cli.embed",
        "Embed shards into a collection, on this machine or a cluster.",
    ),
    "status": (
        "chiasm.jobs.cli.status",
        "Tell what a collection holds, what was dropped, and who is at work.",
    ),
    "index": ("chiasm.jobs.cli.index", "Build the index of a collection."),
    "search": ("chiasm.jobs.cli.search", "Search a collection by text, by a picture, or by both."),
    "match": ("chiasm.jobs.cli.match", "Tell whether texts tell of a picture."),
    "train": ("chiasm.jobs.cli.train", "Train a model that embeds, fuses and matches."),
    "filter": ("chiasm.jobs.cli.filter", "Leave out captions that do not tell of their pictures."),
    "check": ("chiasm.jobs.cli.check", "Verify a collection and its index."),
    "submit": ("chiasm.jobs.cli.submit", "Run a chiasm command as a job on a Ray cluster."),
}
C_OUTPUT = platformdirs.user_cache_path("chiasm", appauthor=False) / "c-output.log"
EPILOG = "Begin with: chiasm demo"


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    prepare_process()
    try:
        try:
            application(arguments)(args=arguments, prog_name="chiasm")
        finally:
            sys.stdout.flush()  # here, where a full disk can still be told
    except ChiasmError as error:
        print(f"chiasm: {printable(str(error))}", file=sys.stderr)
        _leave(error.exit_code)
    except Stopped as stopped:
        told = stopped.told or "stopped; run the same command again to go on"
        print(f"chiasm: {told}", file=sys.stderr)
        _leave(stopped.exit_code)
    except BrokenPipeError:
        _leave(1)  # whoever read our output has gone, and needs no word
    except OSError as error:
        print(f"chiasm: output: {error.strerror or error}", file=sys.stderr)
        _leave(1)


def prepare_process() -> None:
    """Signals, text streams that take any text, and C libraries' output; once, before all else."""
    STOPPING.install()
    for stream, errors in ((sys.stdin, "replace"), (sys.stdout, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):  # None where it is closed
            stream.reconfigure(errors=errors)
    # Threads that wait in a loop take the cores from those that decode and from other processes.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    divert_c_output(C_OUTPUT)


def _leave(code: int) -> NoReturn:
    """Exit without a second try to write what stdout still holds."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"chiasm {metadata.version('chiasm')}")
        raise typer.Exit


def application(arguments: Sequence[str]) -> typer.Typer:
    """The Typer application: the called command for real, the others by name and summary."""
    app = typer.Typer(
        name="chiasm",
        help="Cross-modal retrieval: WebDataset shards in, answers out.",
        epilog=EPILOG,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(options)
    called = next((word for word in arguments if not word.startswith("-")), None)
    for name, (module, summary) in COMMANDS.items():
        if name == called:
            importlib.import_module(module).register(app)
        else:
            app.command(name, help=summary)(_not_called)
    return app


def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """What stands before a command; `--version` is answered by its own callback."""


def _not_called() -> None:
    raise RuntimeError("only the called command is registered for real")

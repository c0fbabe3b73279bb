"""Command groups whose commands are imported only when they are called.

Typer 0.29 carries a copy of click of its own (`typer._click`): a group written against the package
`click` is not one that Typer knows, and two copies of click in one process share no exceptions. So
this uses Typer's public API alone: a subclass of `typer.core.TyperGroup`, passed as `cls`, and
`typer.main.get_command`. Help and completion of names see a name and a summary; only
`resolve_command`, which runs when a command is called or its options are completed, loads it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from chiasm.pipeline.errors import UsageError

Loader = Callable[[str], tuple[Callable[..., None], str]]  # name -> (function, its HELP)

CONTEXT = {"help_option_names": ["-h", "--help"]}
EXAMPLE_WIDTH = 76  # columns of an example line: a terminal of 80 shows it whole
_OPTION_START = re.compile(r""" (?=--)(?=(?:[^"']|"[^"]*"|'[^']*')*$)""")


@dataclass(frozen=True)
class Group:
    """A command that holds others. help: what follows the summary; commands: name -> summary;
    options: a function with the group's own options."""

    summary: str
    help: str
    commands: Mapping[str, str]
    options: Callable[..., None] | None = None


def lazy_group(
    commands: Mapping[str, str | Group], load: Loader, parent: str = ""
) -> type[TyperGroup]:
    """A group class for `typer.Typer(cls=...)`.

    commands: name -> summary, or a group. load: called with the full name, as in `index build`.
    """

    class LazyGroup(TyperGroup):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            for name, known in commands.items():
                summary = known.summary if isinstance(known, Group) else known
                self.commands[name] = TyperCommand(name, help=summary)

        def resolve_command(self, ctx: Any, args: list[str]) -> Any:
            name, command, rest = super().resolve_command(ctx, args)
            if name is None or command is None:
                return name, command, rest
            return name, _command(name, commands[name], load, parent), rest

    return LazyGroup


def _command(name: str, known: str | Group, load: Loader, parent: str) -> Any:
    """The command or group itself, imported."""
    full_name = f"{parent} {name}".strip()
    app = typer.Typer(
        name=name, add_completion=False, pretty_exceptions_enable=False, context_settings=CONTEXT
    )
    if isinstance(known, Group):
        app = typer.Typer(
            name=name,
            cls=lazy_group(known.commands, load, full_name),
            help=help_text(known.summary, known.help),
            no_args_is_help=True,
            add_completion=False,
            pretty_exceptions_enable=False,
            context_settings=CONTEXT,
        )
        app.callback()(known.options or _group)
    else:
        function, details = load(full_name)
        app.command(name, help=help_text(known, details))(function)
    command = get_command(app)
    command.name = name
    command.params += _options_of(_global_options)
    return command


def _options_of(function: Callable[..., None]) -> list[Any]:
    """The options of a function, to be added to those of a command."""
    app = typer.Typer(add_completion=False)
    app.command()(function)
    return get_command(app).params


def _refuse(ctx: typer.Context, param: typer.CallbackParam, value: str | None) -> None:
    """UsageError for an option of `chiasm` itself that was given to a command."""
    if value is None:
        return
    program, _, command = ctx.command_path.partition(" ")
    given = f"--{(param.name or '').replace('_', '-')} {value}"
    raise UsageError(
        given, expected="it before the command", do=f"type: {program} {given} {command} ..."
    )


_Misplaced = Annotated[
    str | None,
    typer.Option(hidden=True, is_eager=True, expose_value=False, callback=_refuse),
]


def _global_options(log_level: _Misplaced = None, log_format: _Misplaced = None) -> None:
    """Options of `chiasm` itself, hidden in a command: there they only say where they belong."""


def _group() -> None:
    """A group does nothing itself; its commands do."""


def help_text(summary: str, details: str) -> str:
    """The text of `--help`. Indented lines of `details` are examples, one command each: they keep
    their line, or continue after a backslash; other paragraphs are wrapped by the terminal."""
    parts = [summary]
    for paragraph in details.strip("\n").split("\n\n"):
        lines = paragraph.splitlines()
        if paragraph.startswith("  "):
            parts.append("\n".join(["Examples:", *map(_example, lines)]))
        else:
            parts.append(" ".join(line.strip() for line in lines))
    return "\n\n".join(part for part in parts if part)


def _example(line: str) -> str:
    """An example on lines of EXAMPLE_WIDTH, broken only before an option outside quotes."""
    lines: list[str] = []
    for part in _OPTION_START.split(line.strip()):
        joined = f"{lines[-1]} {part}" if lines else part
        if lines and len(joined) > EXAMPLE_WIDTH - 4:
            lines.append(f"    {part}")
        else:
            lines[-1:] = [joined]
    return "  " + " \\\n  ".join(lines)

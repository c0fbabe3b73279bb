"""`chiasm index build`."""

from __future__ import annotations

from typing import Annotated

import typer

HELP = "Build the index of a collection."


def register(app: typer.Typer) -> None:
    group = typer.Typer(help=HELP, no_args_is_help=True)
    group.callback()(_group)
    group.command("build", help=BUILD_HELP)(build)
    app.add_typer(group, name="index")


BUILD_HELP = """Build the index of a collection and make it live.

  chiasm index build photos.chiasm

The index that was live answers until the new one is whole."""


def _group() -> None:
    """Without a callback Typer would drop the word `build`, the group's only command."""


def build(
    collection: Annotated[str, typer.Argument(metavar="COLLECTION")],
    column: Annotated[
        list[str] | None,
        typer.Option(help="image, text or joint; may be repeated. [default: all that have rows]"),
    ] = None,
) -> None:
    raise NotImplementedError

"""Reports of what was measured when an index was built: printed and drawn, by `chiasm index build`
and `chiasm index status`; and what is said of columns that nobody measured."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from chiasm.index.build import Report, draw_reports
from chiasm.index.plan import IndexSettings
from chiasm.index.segments import build_command, exact_columns, open_current
from chiasm.jobs.console import printable
from chiasm.pipeline.errors import CollectionError, StorageError, UsageError
from chiasm.pipeline.storage import Folder

Plot = Annotated[
    str | None, typer.Option(metavar="FILE", help="Draw recall and queries a second: a PNG.")
]


def print_reports(reports: Mapping[str, Report]) -> None:
    """The reports by column, a line for every plan."""
    for report in reports.values():
        for line in report.lines():
            print(printable(f"  {line}"))


def exact_lines(folder: Folder, exact_below: int = IndexSettings.exact_below) -> list[str]:
    """What is said of columns of the live generation that are exact, and have so many rows by now
    that a build would try other plans."""
    try:
        generation = open_current(folder)
    except CollectionError:
        return []  # `chiasm check` says what is damaged
    return [
        f"{column}: exact, of {vectors:,} rows, all of which a query scans; "
        f"{build_command(folder)} tries faster plans from {exact_below:,} rows on"
        for column, vectors in (exact_columns(generation) if generation else {}).items()
        if vectors >= exact_below
    ]


def require_plot(path: str) -> None:
    """UsageError for a file that cannot become a plot."""
    if not path.endswith(".png"):
        raise UsageError(f"--plot {path}", expected="a name that ends in .png", found="another one")
    folder = Path(path).parent
    if not folder.is_dir():
        raise UsageError(f"--plot {path}", expected="an existing folder", found=f"none at {folder}")


def write_plot(path: str, reports: Mapping[str, Report]) -> None:
    """Draw what was measured; StorageError where the file cannot be written."""
    if not reports:
        print("no plot: nothing was measured", file=sys.stderr)
        return
    drawn = draw_reports(list(reports.values()))
    try:
        Path(path).write_bytes(drawn)
    except OSError as error:
        expected, found = "a file to write", error.strerror or str(error)
        raise StorageError(f"--plot {path}", expected=expected, found=found) from error

"""What becomes of the answers of `chiasm search`, and what is refused before they are found."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass

from chiasm.index.output_files import file_to_write
from chiasm.index.query import check_share
from chiasm.index.query_files import with_place
from chiasm.index.sheet import sheet_format
from chiasm.pipeline.errors import ChiasmError, UsageError
from chiasm.pipeline.storage import Folder, canonical_url

STREAMS = {"stdin": 0, "stdout": 1}


@dataclass(frozen=True)
class Output:
    """What becomes of answers, as the options say."""

    as_json: bool
    false_alarms: float | None
    sheet: str | None
    explain_hits: bool
    explain: bool
    receipt: str | None
    audit: float | None


def check_output(output: Output, collection: str, files: Mapping[str, str]) -> None:
    """Refuses what cannot be used now, rather than after the search. files: those that are searched
    by, as they were typed, over which nothing may be written."""
    if output.audit is not None:
        check_share(output.audit)
    if output.sheet is not None:
        sheet_format(output.sheet)
    elif output.explain_hits:
        raise UsageError(
            "--explain-hits", expected="--sheet FILE, on which it draws", found="no sheet"
        )
    for given, file in files.items():
        try:
            canonical_url(file, allow_query=True)
        except ChiasmError as error:
            raise with_place(given.partition(" ")[0], error) from error
    taken = dict(files)
    for option, to in (("--sheet", output.sheet), ("--receipt", output.receipt)):
        if to is not None:
            _require_own_file(option, to, collection, taken)
            taken[option] = to


def _require_own_file(option: str, to: str, collection: str, taken: dict[str, str]) -> None:
    try:
        folder, name = file_to_write(to, Folder(collection), taken)
    except ChiasmError as error:
        raise with_place(option, error) from error
    target = folder.local and folder.local / name
    if target and target.exists():
        for stream, number in STREAMS.items():
            if _is_file(number, target.stat()):
                expected, found = "a file of its own", f"that of {stream}"
                raise UsageError(f"{option}: {to}", expected=expected, found=found)


def _is_file(descriptor: int, file: os.stat_result) -> bool:
    try:
        found = os.fstat(descriptor)
    except OSError:  # it is closed
        return False
    return stat.S_ISREG(found.st_mode) and os.path.samestat(found, file)


def require_file_alone(
    queries: str | None, to: str | None, has_query: bool, output: Output
) -> None:
    """UsageError where --queries and --to do not come together, or beside what they exclude."""
    if queries is None or to is None:
        found = "--queries" if to is None else "--to"
        raise UsageError("search", expected="--queries and --to together", found=f"{found} alone")
    if output.receipt is not None:
        raise UsageError(
            "--receipt",
            expected="a query, or lines of stdin",
            found="--queries",
            do="a receipt holds the vector and the answer of each query, so it is for few: write "
            "one for some lines of the file",
        )
    given = {
        "a query": has_query,
        "--sheet": output.sheet is not None,
        "--json": output.as_json,
        "--explain": output.explain,
    }
    others = [name for name, is_given in given.items() if is_given]
    if others:
        raise UsageError("--queries", expected="no other query or output", found=others[0])

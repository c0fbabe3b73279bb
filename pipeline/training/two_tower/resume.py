"""May a training go on? What its weights depend on is written into its folder when it begins, and
compared before anything is computed when it is started again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.model.checkpoint import write_file

MISSING = "none"  # the value of a fact that only one of the two has
MOST_NAMED = 3  # differences in one error


def require_same(path: Path, facts: Mapping[str, Any]) -> None:
    """UsageError where the file has other facts than these, with both values of the first few.
    Facts that only the file has are not compared; without a file, nothing is.

    facts: JSON values by name, mappings in mappings; `format` and `held_out` among them.
    """
    if not path.exists():
        return
    before = json.loads(path.read_text())
    if before.get("held_out") != facts["held_out"]:
        raise _of_another_version(
            path, f"held out by {facts['held_out']}", before.get("held_out", "by its key")
        )
    if before.get("format") != facts["format"]:
        raise _of_another_version(path, facts["format"], before.get("format"))
    ours = dict(_flat(json.loads(json.dumps(facts))))
    theirs = dict(_flat({name: before[name] for name in facts if name in before}))
    names = [n for n in {**theirs, **ours} if ours.get(n, MISSING) != theirs.get(n, MISSING)]
    if names:
        raise UsageError(
            f"training in {path.parent}",
            expected=f"{_values(theirs, names)}, as it began",
            found=_values(ours, names),
            do="give what it began with, or another folder",
        )


def _of_another_version(path: Path, expected: str, found: object) -> UsageError:
    return UsageError(
        f"training in {path.parent}",
        expected=expected,
        found=f"{found}, by another version of chiasm",
        do="train into another folder",
    )


def write_facts(path: Path, facts: Mapping[str, Any]) -> None:
    """Write the facts of a training that begins; those of one that has begun stay."""
    if not path.exists():
        write_file(path, (json.dumps(facts, indent=2) + "\n").encode())


def _flat(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as values by dotted names."""
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _values(facts: Mapping[str, Any], names: list[str]) -> str:
    items = [f"{name} {facts.get(name, MISSING)}" for name in names[:MOST_NAMED]]
    more = len(names) - MOST_NAMED
    return ", ".join(items) + (f" and {more} more" if more > 0 else "")

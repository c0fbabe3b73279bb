"""May a training go on? What its weights depend on is written into its folder when it begins, and
compared before anything is computed when it is started again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.model.checkpoint import write_file
from chiasm.pipeline.training.facts import changed, flat, values_of


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
    ours = dict(flat(json.loads(json.dumps(facts))))
    theirs = dict(flat({name: before[name] for name in facts if name in before}))
    names = changed(theirs, ours)
    if names:
        raise UsageError(
            f"training in {path.parent}",
            expected=f"{values_of(theirs, names)}, as it began",
            found=values_of(ours, names),
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

"""The names under which files are written on this machine, before they have their own.

A temporary lies in the folder of its file and carries the ids of its run and of its attempt, so a
sweep knows whose it is.
"""

from __future__ import annotations

import re

RUN_ID = "[0-9]{8}T[0-9]{6}-[0-9a-f]{8}"  # a regular expression
# What belongs to no run has an empty id; earlier versions wrote no attempt. Other programs' names
# (.notes.swp.tmp) are none of ours.
_TEMPORARY = re.compile(
    rf"^\.(?P<base>.+)\.((?P<run>(?:{RUN_ID})?)~[0-9a-f]{{8}}|(?P<earlier>{RUN_ID}))\.tmp$",
    re.DOTALL,
)


def temporary_of(name: str, run_id: str, attempt: str) -> str:
    """The name under which an attempt of a run writes `name`, such as
    `ledger/.a.json.<run id>~<attempt>.tmp`.

    run_id: of `RUN_ID`, or empty; what has another one is never swept. attempt: eight hex digits.
    ValueError for a run id with dots, slashes or tildes."""
    if not re.fullmatch(r"[^./~]*", run_id):
        raise ValueError(f"expected a run id without dots, slashes and tildes, found {run_id!r}")
    folder, slash, base = name.rpartition("/")
    return f"{folder}{slash}.{base}.{run_id}~{attempt}.tmp"


def is_temporary(name: str) -> bool:
    """Whether `name` is one that `temporary_of` returns for a run, or for none."""
    return _TEMPORARY.match(name.rpartition("/")[2]) is not None


def run_of_temporary(name: str) -> str:
    """The id of the run that wrote the temporary `name`; ValueError for other names."""
    found = _parts_of_temporary(name)
    return found["run"] if found["earlier"] is None else found["earlier"]


def target_of_temporary(name: str) -> str:
    """The file that the temporary `name` is to become; ValueError for other names."""
    folder, slash, _ = name.rpartition("/")
    return f"{folder}{slash}{_parts_of_temporary(name)['base']}"


def _parts_of_temporary(name: str) -> re.Match[str]:
    found = _TEMPORARY.match(name.rpartition("/")[2])
    if found is None:
        raise ValueError(f"expected the name of a temporary, found {name!r}")
    return found

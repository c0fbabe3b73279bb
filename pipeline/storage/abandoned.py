"""Temporaries of files that belong to no run: whether their writers live is told by a lock.

A writer holds a lock on its temporary, which ends with its process, however that ends.
"""

from __future__ import annotations

import fcntl
import stat as modes
import time
from contextlib import suppress
from pathlib import Path

from chiasm.pipeline.storage.temporaries import is_temporary, run_of_temporary

# More than the moment between making a file and locking it.
YOUNG_SECONDS = 60.0


def is_abandoned(path: Path) -> bool:
    """Whether this is a temporary of no run whose writer is dead. FileNotFoundError where it is
    gone. False on a file system without locks."""
    if not is_temporary(path.name) or run_of_temporary(path.name):
        return False
    found = path.lstat()
    if not modes.S_ISREG(found.st_mode) or time.time() - found.st_mtime < YOUNG_SECONDS:
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


def remove_abandoned(folder: Path) -> None:
    """Remove the temporaries of dead writers from a folder."""
    for path in folder.glob(".*.tmp"):
        with suppress(FileNotFoundError):  # another process sweeps too
            if is_abandoned(path):
                path.unlink()

"""What C libraries print goes to a log, what Python prints stays where it went.

Decoders written in C (libtiff above all) write remarks about odd files to file descriptor 2 on
their own: hundreds of lines for a shard of broken pictures, which the ledger tells better. They can
be neither asked nor caught by a filter inside Python. So a worker process calls `divert_c_output`
once: descriptor 2 becomes a log file, and `sys.stderr` is opened anew on what it was. A log and not
the void, because the last words of a process that dies in C are written there too.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

_lock = threading.Lock()
_log: Path | None = None


def divert_c_output(log: Path) -> Path:
    """Send what is written to file descriptor 2 to `log`, from now on and in the whole process.

    Call it before logging is set up: a handler made earlier keeps writing to the descriptor, and so
    into the log. A second call changes nothing. Returns the log in use."""
    global _log
    with _lock:
        if _log is None:
            log.parent.mkdir(parents=True, exist_ok=True)
            sys.stderr.flush()
            terminal = os.dup(2)
            with log.open("ab") as file:
                os.dup2(file.fileno(), 2)
            sys.stderr = os.fdopen(terminal, "w", buffering=1, errors="backslashreplace")
            _log = log
        return _log

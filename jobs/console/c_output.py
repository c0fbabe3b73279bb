"""Redirects what C libraries print to a log file; Python's output stays where it was.

Decoders written in C (libtiff above all) write warnings about odd files to file descriptors 1 and
2: hundreds of lines for a shard of broken pictures, whose reasons are in the ledger. Neither an
option nor a filter in Python can stop them. So a process calls `divert_c_output` once: both
descriptors become a log file, and `sys.stdout` and `sys.stderr` are reopened on duplicates of the
old ones. A log and not /dev/null, because messages of a process that crashes in C are written there
too; /dev/null only where no log can be written.
"""

from __future__ import annotations

import io
import os
import sys
import threading
from pathlib import Path
from typing import TextIO

_MOST_BYTES = 1 << 22  # of a log when a process starts, which begins a larger one anew

_lock = threading.Lock()
_log: Path | None = None


def divert_c_output(log: Path) -> Path:
    """Send what is written to file descriptors 1 and 2 to `log`, from now on and in the whole
    process, and in those that it starts.

    Call it before logging is set up: a handler made earlier keeps writing to the descriptor, and so
    into the log. A second call changes nothing. Returns the log in use."""
    global _log
    with _lock:
        if _log is None:
            handle, _log = _opened(log)
            sys.stdout = _moved(sys.stdout, 1, handle)
            sys.stderr = _moved(sys.stderr, 2, handle)
            os.close(handle)
        return _log


def _opened(log: Path) -> tuple[int, Path]:
    """A descriptor of the log, and where it is; a home that cannot be written is no reason to stop,
    nor to print on a terminal."""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        begin = os.O_TRUNC if log.exists() and log.stat().st_size > _MOST_BYTES else 0
        return os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | begin, 0o600), log
    except OSError:
        return os.open(os.devnull, os.O_WRONLY), Path(os.devnull)


def _moved(stream: TextIO | None, number: int, log: int) -> TextIO | None:
    """A stream like `stream` on a descriptor of its own; `number` leads to the log.

    A stream that is on another descriptor (in tests, in notebooks), or closed, stays as it is:
    then `number` is not ours to move."""
    if not isinstance(stream, io.TextIOWrapper) or stream.fileno() != number:
        return stream
    stream.flush()
    kept = os.dup(number)
    os.dup2(log, number)
    moved = os.fdopen(kept, "w", encoding=stream.encoding, errors=stream.errors)
    moved.reconfigure(line_buffering=stream.line_buffering, write_through=stream.write_through)
    return moved

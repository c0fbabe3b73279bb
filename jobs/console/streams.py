"""Standard streams that may be closed, and text that they may be unable to write."""

from __future__ import annotations

import io
import os
import sys


def open_closed_streams() -> None:
    """Give each standard stream that was closed (`>&-`) an open descriptor; once, before any file
    is opened: the next one would take its number, and what C libraries print would go into it.

    Nothing comes from stdin, and `sys.stdin` stays None. What is written to stderr is lost; what is
    written to stdout fails, as it does with other programs: results are not lost in silence."""
    for number, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, flags)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)


def take_any_text() -> None:
    """Have stdin and stdout take any text, whatever the locale's encoding."""
    for stream, errors in (
        (sys.stdin, "replace"),
        (sys.stdout, "backslashreplace"),
        (sys.stderr, "backslashreplace"),
    ):
        if isinstance(stream, io.TextIOWrapper):  # None where it was closed
            stream.reconfigure(errors=errors)

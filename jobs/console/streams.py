"""Standard streams that may be closed, and text that they may be unable to write."""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Iterator

from chiasm.pipeline.errors import UsageError

MARKS = {  # that of UTF-32-LE begins with that of UTF-16-LE
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
    codecs.BOM_UTF8: "utf-8",
}
LONGEST_MARK = 4
CHUNK = 1 << 16


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
    """Have stdout and stderr take any text, whatever the locale's encoding."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def lines_of(descriptor: int, errors: str) -> Iterator[list[str]]:
    """Whole lines of an open file as they arrive, without their ends, so that a program that writes
    one line and waits is answered. In UTF-8 or, as a Windows shell writes files, in UTF-16 or
    UTF-32 with a byte order mark. errors: what becomes of bytes that are no UTF-8, as in `open`.
    Raises UsageError for a null character: it is of another encoding, or no text.
    """
    data = b""
    # Longer only while it may become a mark: not every writer writes four bytes before it waits.
    while len(data) < LONGEST_MARK and any(mark.startswith(data) for mark in MARKS):
        more = os.read(descriptor, CHUNK)
        if not more:
            break
        data += more
    mark = next(filter(data.startswith, MARKS), b"")
    encoding = MARKS.get(mark, "utf-8")
    decode = codecs.getincrementaldecoder(encoding)(errors if encoding == "utf-8" else "replace")
    data, rest, count = data.removeprefix(mark), "", 1
    while True:
        text = decode.decode(data)
        before, null, _ = text.partition("\0")
        if null:
            number = count + before.count("\n")
            raise UsageError(
                f"line {number} of stdin",
                expected="text in UTF-8, or in UTF-16 with a byte order mark",
                found="a null character",
            )
        *lines, rest = (rest + text).split("\n")
        count += len(lines)
        if lines:
            yield lines
        data = os.read(descriptor, CHUNK)
        if not data:
            break
    yield [rest + decode.decode(b"", final=True)]

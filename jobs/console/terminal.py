"""Text of others before it meets a terminal: of shards, models, stores, other programs."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from typing import Any

# What moves the cursor, changes colours, titles and keys, turns the order of a line around or hides
# in it; and lone surrogates, which no encoding has.
_CONTROLS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e0fff]"
)


def printable(text: object) -> str:
    """One line that leaves the terminal as it is: control characters are shown as escapes."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def printable_columns(columns: Iterable[str]) -> str:
    """Columns of one line, each made printable and its white space single, with tabs between."""
    return "\t".join(printable(" ".join(column.split())) for column in columns)


def json_line(value: Any) -> str:
    """A value as one line of JSON: as people read it where stdout is UTF-8, else in ASCII. What a
    terminal must not see is escaped either way. ValueError for a number that JSON does not have."""
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    ascii_alone = encoding.lower().replace("_", "-") not in ("utf-8", "utf8", "utf-8-sig")
    text = json.dumps(value, ensure_ascii=ascii_alone, allow_nan=False)
    return _CONTROLS.sub(lambda found: json.dumps(found[0])[1:-1], text)


def counted(number: int, thing: str) -> str:
    """A number of things: 1 answer, 2 answers."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def shortened(text: str, most: int = 60) -> str:
    """A text as one line of a message: of a longer one the beginning."""
    return text if len(text) <= most else f"{text[:most]}..."

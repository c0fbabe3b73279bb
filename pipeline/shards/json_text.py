"""A json member with other values for some of its keys: its text is edited, not written anew.

Parsed and written again, 1.0 and 1e400, whole numbers of 30 digits, keys that stand twice, spaces,
escapes and a byte order mark would come out as something else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

# Strings, brackets, what separates, and all else: numbers and words.
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[][{}:,]|[^][{}:,"\s]+', re.DOTALL)


def with_values(data: bytes, values: Mapping[str, object]) -> bytes:
    """The object in `data` with these values: in place of the value of each such key, wherever it
    stands at the top, else at the end. data: an object that `json_object` reads."""
    encoding = json.detect_encoding(data)
    text = data.decode(encoding)
    spans, end = _spans(text)
    written = {key: _json(value) for key, value in values.items()}
    missing = written.keys() - {key for key, _, _ in spans}
    added = ", ".join(f"{_json(key)}: {value}" for key, value in written.items() if key in missing)
    edits = [(start, stop, written[key]) for key, start, stop in spans if key in written]
    if added:
        edits.append((end, end, f", {added}" if spans else added))
    for start, stop, replacement in reversed(edits):
        text = text[:start] + replacement + text[stop:]
    return text.encode(encoding)


def _spans(text: str) -> tuple[list[tuple[str, int, int]], int]:
    """(key, start, end) of each value at the top, in their order; and where another goes."""
    spans: list[tuple[str, int, int]] = []
    depth, start, key = 0, 0, None
    for token in _TOKEN.finditer(text):
        kind = token[0][0]
        if kind in "{[":
            start = token.start() if depth == 1 else start
            depth += 1
        elif kind in "}]":
            depth -= 1
            if depth == 0:
                return spans, len(text[: token.start()].rstrip())
            if depth == 1 and key is not None:
                spans.append((key, start, token.end()))
                key = None
        elif depth == 1 and kind not in ",:":
            if key is None:
                key = json.loads(token[0])
            else:
                spans.append((key, token.start(), token.end()))
                key = None
    raise ValueError("expected an object")


def _json(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return json.dumps(value)
    return text

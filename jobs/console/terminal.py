"""Text that came from a shard, before it meets a terminal."""

from __future__ import annotations

import re

# What moves the cursor, changes colours, titles and keys, or turns the order of a line around.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """One line that leaves the terminal as it is: control characters are shown as escapes."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)

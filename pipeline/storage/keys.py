"""Keys of object stores: which ones there can be, and which ones match a glob."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable

from chiasm.pipeline.errors import UsageError

_ANY = re.compile(".+", re.DOTALL)


def require_utf8(url: str) -> None:
    """UsageError for a URL with bytes of a command line that are no UTF-8: no key has them."""
    try:
        url.encode()
    except UnicodeEncodeError as error:
        expected, found = "a URL in UTF-8", "bytes that are none"
        raise UsageError(repr(url), expected=expected, found=found) from error


def glob_matcher(pattern: str) -> Callable[[str], bool]:
    """A function from a key to whether it matches: `*`, `?` and `[...]` stay inside one part of the
    key, `**` stands for any number of parts, at the end for at least one.

    Parts are matched one by one, so that the time is bounded by their lengths: one regular
    expression for the whole pattern takes time exponential in its stars. Raises ValueError where
    `**` is only a piece of a part."""
    parts = pattern.split("/")
    if any("**" in part and part != "**" for part in parts):
        raise ValueError("** as a piece of a name")
    # The translation has no nested repetition: fnmatch puts each star into an atomic group.
    tests = [
        None if part == "**" else (_ANY if part == "*" else re.compile(fnmatch.translate(part)))
        for part in parts
    ]

    def matches(key: str) -> bool:
        names = key.split("/")
        reached = {0}  # how many names the parts so far can have matched
        for number, test in enumerate(tests, start=1):
            if test is None:
                fewest = min(reached) + (number == len(tests))
                reached = set(range(fewest, len(names) + 1))
            else:
                reached = {
                    place + 1
                    for place in reached
                    if place < len(names) and test.fullmatch(names[place])
                }
            if not reached:
                return False
        return len(names) in reached

    return matches

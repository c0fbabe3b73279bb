"""Facts of a training, compared and named in messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MOST_NAMED = 3  # values in one message
MISSING = "none"


def flat(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as values by dotted names."""
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The dotted names whose values are not the same in both, which are flat."""
    return [n for n in {**before, **now} if now.get(n, MISSING) != before.get(n, MISSING)]


def values_of(facts: Mapping[str, Any], names: Sequence[str]) -> str:
    """The values of the first names: `steps 300, data.batch 8 and 2 more`; facts: flat."""
    items = [f"{name} {facts.get(name, MISSING)}" for name in names[:MOST_NAMED]]
    more = len(names) - MOST_NAMED
    return ", ".join(items) + (f" and {more} more" if more > 0 else "")

"""Two answers to one query -> what differs, as lines for a person."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MAX_LINES = 10  # of one kind, for one query
COMPARED = ("rank", "score", "scores", "reranked")  # fields of a result with lines of their own


def differences(number: int, then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two answers as `answer_as_json` gives them: which rows came, went and
    moved, whose scores and other fields differ. number: of the query, from 1."""
    before = {str(result["id"]): result for result in then.get("results", [])}
    after = {str(result["id"]): result for result in now["results"]}
    both = [row for row in before if row in after]
    went = [f"{row} went, from rank {before[row]['rank']}" for row in before if row not in after]
    came = [f"{row} came, at rank {after[row]['rank']}" for row in after if row not in before]
    moved = [
        f"{row} moved from rank {before[row]['rank']} to {after[row]['rank']}"
        for row in both
        if before[row]["rank"] != after[row]["rank"]
    ]
    lines = [line for kind in (went, came, moved) for line in _first(kind)]
    lines += _scores([(before[row], after[row]) for row in both])
    fields = dict.fromkeys(name for row in both for name in (*before[row], *after[row]))
    for name in fields:
        count = sum(before[row].get(name) != after[row].get(name) for row in both)
        if name not in COMPARED and count:
            lines.append(f"{name} of {_rows(count)} differs")
    for name in dict.fromkeys((*then, *now)):
        if name != "results" and then.get(name) != now.get(name):
            values = "" if isinstance(now.get(name), dict | list) else _values(then, now, name)
            lines.append(f"{name} differs{values}")
    return [f"query {number}: {line}" for line in lines]


def _scores(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> list[str]:
    """One line where scores differ."""
    names = ("score", "scores", "reranked")
    differing = [pair for pair in pairs if any(pair[0].get(n) != pair[1].get(n) for n in names)]
    if not differing:
        return []
    most = max(abs(float(then["score"]) - float(now["score"])) for then, now in differing)
    return [f"scores of {_rows(len(differing))} differ, the last one by {most:.2g} at most"]


def _values(then: dict[str, Any], now: dict[str, Any], name: str) -> str:
    return f": was {then.get(name)!r}, is {now.get(name)!r}"


def _first(lines: list[str]) -> list[str]:
    more = len(lines) - MAX_LINES
    return lines if more <= 0 else [*lines[:MAX_LINES], f"... and {more:,} more"]


def _rows(count: int) -> str:
    return f"{count:,} row{'s' if count > 1 else ''}"

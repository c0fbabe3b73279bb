"""Quantities with units on the command line: `4GB`, `10ms`."""

from __future__ import annotations

import re

from chiasm.pipeline.errors import UsageError

BYTES = {"B": 1e-9, "KB": 1e-6, "MB": 1e-3, "GB": 1.0, "TB": 1e3}
SECONDS = {"US": 1e-3, "MS": 1.0, "S": 1e3}


def gigabytes(text: str | None, option: str) -> float | None:
    """`4GB`, `500 MB` as GB; None where the option was not given. UsageError for anything else."""
    return _quantity(text, option, BYTES, "a size above 0, such as 4GB or 500MB")


def milliseconds(text: str | None, option: str) -> float | None:
    """`10ms`, `0.5 s` as ms; None where the option was not given. UsageError for anything else."""
    return _quantity(text, option, SECONDS, "a time above 0, such as 10ms or 0.5s")


def _quantity(
    text: str | None, option: str, units: dict[str, float], expected: str
) -> float | None:
    if text is None:
        return None
    found = re.fullmatch(r"\s*([0-9]{1,12}(?:\.[0-9]{1,9})?)\s*([A-Za-z]{1,2})\s*", text, re.ASCII)
    if found is None or found[2].upper() not in units or float(found[1]) == 0:
        raise UsageError(option, expected=expected, found=repr(text))
    return float(found[1]) * units[found[2].upper()]

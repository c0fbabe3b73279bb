"""Globs of keys, against those of fsspec."""

from __future__ import annotations

import random
import re

import pytest
from fsspec.utils import glob_translate

from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.storage import glob
from chiasm.pipeline.storage.keys import glob_matcher


def test_a_glob_matches_what_fsspec_matches():
    rng = random.Random(5)
    folders, pieces = ("**", "a", "*", "?b", "a*b"), ("a", "b", "*a", "?", "[ab]", "[", "b*")
    matched = 0
    for _ in range(400):
        base = "".join(rng.choices(pieces, k=rng.randint(1, 3))) if rng.random() < 0.8 else "**"
        if "**" in base and base != "**":
            continue
        pattern = "/".join([*rng.choices(folders, k=rng.randrange(4)), base])
        matches, expected = glob_matcher(pattern), re.compile(glob_translate(pattern)).fullmatch
        for _ in range(20):
            names = ["".join(rng.choices("ab[", k=rng.randint(1, 3))) for _ in range(4)]
            key = "/".join(names[: rng.randint(1, 4)])
            assert matches(key) == bool(expected(key)), (pattern, key)
            matched += matches(key)
    assert 500 < matched < 7000  # both answers are tried


def test_a_wildcard_stays_inside_its_part():
    assert not glob_matcher("a[!b]c")("a/c") and not glob_matcher("a?c")("a/c")
    assert glob_matcher("**/b")("b") and not glob_matcher("b/**")("b")


def test_the_time_of_a_glob_does_not_grow_with_its_stars():
    """As one regular expression the first takes 10^20 steps."""
    assert not glob_matcher("b/" + "*a" * 40 + "b")("b/" + "a" * 80)
    assert not glob_matcher("**/a/" * 40 + "b")("a/" * 80)


def test_two_stars_are_a_whole_part():
    with pytest.raises(UsageError, match=r"s3://b/a\*\*: expected .*, found \*\* as a piece of"):
        glob("s3://b/a**")

"""Which faults are drawn: by the seed alone, one at a time, and never a string."""

from __future__ import annotations

import ast

import pytest

from benchmarks.mutants import draw, mutants_of, related_tests, wilson
from benchmarks.nearest_tests import Executed
from tests.support.source_tree import parse

SOURCE = b'''"""A module's own words."""

LIMIT = 3
NAME = "words" + "more"


@cached(size=4)
def first(items: list[int], count: int = 2) -> int:
    """\xe4\xb8\xad\xe6\x96\x87"""
    if count < 0:
        raise ValueError("no less than " + str(0))
    note(f"{count + 1} of them")
    return items[0] if items and count == 1 else None
'''


@pytest.fixture
def tree(tmp_path):
    """A package `pipeline.toy` of two files, and three tests of which two import it."""
    toy = tmp_path / "pipeline" / "toy"
    toy.mkdir(parents=True)
    (toy / "one.py").write_bytes(SOURCE)
    (toy / "two.py").write_bytes(SOURCE.replace(b"first", b"second"))
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "test_a.py").write_text("from chiasm.pipeline import toy\n")
    (tests / "test_b.py").write_text("from chiasm.pipeline.toy import one, two\n")
    (tests / "test_c.py").write_text("from chiasm.pipeline.toys import one\n")
    return tmp_path


def test_every_mutant_of_a_file_is_one_fault_that_parses():
    found = [
        (mutant.line, mutant.original, mutant.replacement) for mutant in mutants_of("x", SOURCE)
    ]
    assert found == [
        (3, "3", "(4)"),
        (8, "2", "(3)"),
        (10, "count < 0", "(count <= 0)"),
        (10, "count < 0", "(not (count < 0))"),
        (10, "0", "(1)"),
        (11, 'raise ValueError("no less than " + str(0))', "pass"),
        (12, 'note(f"{count + 1} of them")', "pass"),
        (13, "return items[0] if items and count == 1 else None", "return None"),
        (13, "items[0] if items and count == 1 else None",
         "(items[0] if not (items and count == 1) else None)"),
        (13, "0", "(1)"),
        (13, "items and count == 1", "(items or count == 1)"),
        (13, "count == 1", "(count != 1)"),
        (13, "1", "(2)"),
    ]  # fmt: skip
    for mutant in mutants_of("x", SOURCE):
        changed = mutant.apply(SOURCE)
        assert changed != SOURCE
        parse(changed)


def test_no_mutant_changes_a_string():
    def strings(source: bytes) -> set[str]:
        found = ast.walk(parse(source))
        constants = (node.value for node in found if isinstance(node, ast.Constant))
        return {value for value in constants if isinstance(value, str)}

    for mutant in mutants_of("x", SOURCE):
        assert strings(mutant.apply(SOURCE)) <= strings(SOURCE)


def test_the_seed_alone_decides_the_draw(tree):
    drawn = draw(tree, "pipeline.toy", 5, seed=3)
    assert drawn == draw(tree, "pipeline.toy", 5, seed=3)
    assert drawn != draw(tree, "pipeline.toy", 5, seed=4)
    assert len(set(drawn)) == 5


def test_a_module_is_drawn_from_alone_and_whole_where_it_has_fewer(tree):
    drawn = draw(tree, "pipeline.toy.one", 300, seed=0)
    assert {mutant.path for mutant in drawn} == {"pipeline/toy/one.py"}
    assert len(drawn) == len(mutants_of("x", SOURCE))
    assert len(draw(tree, "pipeline.toy", 300, seed=0)) == 2 * len(drawn)


def test_the_related_tests_a_package_are_those_that_import_it(tree):
    assert related_tests(tree, "pipeline.toy") == ["tests/test_b.py", "tests/test_a.py"]


@pytest.mark.parametrize(
    ("line", "budget", "expected"),
    [
        (10, 9.0, ["small", "large"]),  # the head of an `if`, and not its body
        (11, 9.0, ["large"]),
        (13, 9.0, ["small", "slow", "large"]),
        (13, 4.0, ["small", "large"]),
        (12, 9.0, []),
        (8, 9.0, ["small", "slow", "large"]),  # at import: whoever executes the file
    ],
)
def test_the_nearest_tests_execute_the_statement_and_little_else(line, budget, expected):
    executed = Executed(
        {"small": 1.0, "slow": 4.0, "large": 2.0},
        {
            "x": {10: ["large", "small"], 11: ["large"], 13: ["slow", "large", "small"]},
            "y": {1: ["large", "slow"], 2: ["large", "slow"]},
        },
    )
    assert executed.nearest(executed.of_statement("x", SOURCE, line), budget) == expected
    assert executed.of_file("x") == {"small", "slow", "large"} and not executed.of_file("z")


def test_the_interval_is_wilsons():
    assert wilson(9, 10) == pytest.approx((0.5958, 0.9821), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)

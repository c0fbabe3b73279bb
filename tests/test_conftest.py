"""What the suite itself relies on."""

from __future__ import annotations

import ast
import gc


class Parsing:
    """In a cycle, so that only a collection ends it; then it parses."""

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        ast.parse("[1, 2]")


def test_a_finaliser_that_parses_does_not_end_another_parse():
    source = "f(a + b + c + d)\n" * 400
    thresholds = gc.get_threshold()
    gc.set_threshold(10, 5, 5)
    try:
        for _ in range(20):
            kept = [Parsing() for _ in range(50)]
            del kept
            assert len(ast.parse(source).body) == 400
    finally:
        gc.set_threshold(*thresholds)

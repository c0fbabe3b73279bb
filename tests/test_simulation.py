"""Stories of runs, builds and searchers beside each other; `python -m benchmarks.simulation` tells
ten thousand. Faults that were once in the product are put back here: the stories find them."""

from __future__ import annotations

import logging

import pytest
from simulated_scenarios import Story

STORIES = 60


@pytest.fixture(autouse=True)
def _quiet(caplog) -> None:
    caplog.set_level(logging.CRITICAL)


@pytest.mark.parametrize("first", range(0, STORIES, 20))
def test_every_promise_holds_whatever_happens(first):
    broken = [line for seed in range(first, first + 20) for line in Story(seed).tell()]
    assert broken == []

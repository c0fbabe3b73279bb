"""Stories of runs, builds and searchers beside each other; `python -m benchmarks.simulation` tells
ten thousand. Faults that were once in the product are put back here: the stories find them."""

from __future__ import annotations

import logging

import pytest
from simulated_faults import FAULTS, put_back
from simulated_plots import PLOTS
from simulated_scenarios import Story

STORIES = 60
# By fault, the plot that is about it; any twenty of its stories find it.
FOUND = {
    "clock step: heartbeats are judged by the wall clock": "claims",
    "clock step: processes are known by when they began": "two builds",
    "equal host names: the boot id is ignored": "claims",
    "publish race: no look after the manifest": "publish race",
    "publish race: segments are not looked at again": "publish race",
    "publish race: the mark is not looked for": "publish race",
    "dead after five seconds": "claims",
    "living builds are forgotten": "two builds",
    "rows before their ledger entry": "anything",
    "opening does not fall back": "generations",
}


@pytest.fixture(autouse=True)
def _quiet(caplog) -> None:
    caplog.set_level(logging.CRITICAL)


@pytest.mark.parametrize("first", range(0, STORIES, 20))
def test_every_promise_holds_whatever_happens(first):
    broken = [line for seed in range(first, first + 20) for line in Story(seed).tell()]
    assert broken == []


@pytest.mark.parametrize("fault", FOUND)
def test_stories_find_a_fault_that_is_put_back(monkeypatch, fault):
    put_back(monkeypatch, fault)
    assert any(Story(seed, FOUND[fault]).tell() for seed in range(20)), fault


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_of_the_list_can_be_put_back(monkeypatch, fault):
    put_back(monkeypatch, fault)


def test_a_seed_tells_the_same_story_again():
    for plot in PLOTS:
        logs: list[list[str]] = [[], []]
        for log in logs:
            story = Story(7, plot)
            story.world.trace = log.append
            story.tell()
        assert logs[0] == logs[1] != []

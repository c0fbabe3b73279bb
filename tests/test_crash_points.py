"""Every crash point, of a sample; `python -m benchmarks.crash_points` tries all.

TRIED says how many states of each kind the fast suite tries, spread evenly over all of them; of an
edit fewer, since it differs from a build in little.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from typing import TypeVar

import pytest
from crash_commands import COMMANDS
from crash_points import DiskCrash, Lost, StoreCrash, recorded_runs_are_dead
from recorded_disk import FOLDER, Change, Tree, killed, powerless, unflushed

from chiasm.pipeline.collection import Run

T = TypeVar("T")
TRIED = 10
EDITS = ("index add", "index delete", "index compact", "index rollback")
TRIED_OF_AN_EDIT = 2
BEFORE = Tree({"a": 0}, {0: b"old"})
REPLACED = [  # how a file is replaced: written aside, flushed, renamed, its folder flushed
    Change("create", ".a.tmp", 1),
    Change("write", ".a.tmp", 1, data=b"new"),
    Change("flush_file", ".a.tmp", 1),
    Change("rename", "a", 1, old=".a.tmp"),
    Change("flush_folder", "."),
]


@pytest.fixture(autouse=True)
def _runs_are_dead(monkeypatch, tmp_path) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with recorded_runs_are_dead():
        yield


def some(items: Sequence[T], name: str) -> list[T]:
    """The first, the last, and others evenly between them; of an edit only of those between."""
    if name in EDITS:
        return [*items[1 : -1 : max(1, (len(items) - 2) // TRIED_OF_AN_EDIT)]]
    step = max(1, (len(items) - 1) // (TRIED - 1))
    return [*items[:-1:step], *items[-1:]]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_crash_costs_nothing_on_a_disk(name, tmp_path):
    crash = DiskCrash.record(tmp_path, COMMANDS[name])
    for state in (*some(crash.killed(), name), *some(list(crash.powerless()), name)):
        crash.recover(state)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_crash_costs_nothing_in_a_store(name, tmp_path):
    crash = StoreCrash.record(tmp_path, COMMANDS[name])
    for state in some(list(crash.killed()), name):
        crash.recover(state)
    for number in some(range(crash.requests), name):
        crash.lose_answer(number)
        crash.lose_store(number)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_call_that_fails_costs_nothing(name, tmp_path):
    crash = DiskCrash.record(tmp_path, COMMANDS[name])
    points = some(range(len(crash.recorded.log)), name)
    for point, number in zip(points, [errno.ENOSPC, errno.EIO] * len(points), strict=False):
        crash.fail(point, number)


def test_a_file_that_is_not_flushed_before_its_rename_is_lost():
    unflushed_rename = [change for change in REPLACED if change.kind != "flush_file"]
    for log, torn in ((REPLACED, False), (unflushed_rename, True)):
        contents = [tree.files().get("a") for tree in powerless(BEFORE, log)]
        assert set(contents) == {b"old", b"new"} | ({b""} if torn else set())


def test_a_name_lasts_once_its_folder_is_flushed():
    assert unflushed(REPLACED) == []
    assert unflushed(REPLACED[:4]) == [0, 3]
    assert {tree.files()["a"] for tree in killed(BEFORE, REPLACED)} == {b"old", b"new"}
    folder = [Change("make_folder", "b", FOLDER), Change("create", "b/c", 2)]
    assert {frozenset(tree.names) for tree in powerless(BEFORE, folder)} == {
        frozenset({"a"}), frozenset({"a", "b"}),
    }  # fmt: skip


def test_a_fault_that_is_put_in_is_found(tmp_path, monkeypatch):
    """Temporaries of dead runs stay."""
    monkeypatch.setattr(Run, "remove_temporaries", lambda self, folders, own=False: [])
    crash = DiskCrash.record(tmp_path, COMMANDS["embed anew"])
    with pytest.raises(Lost):
        for state in crash.killed():
            crash.recover(state)

"""Every crash point of a sample; `python -m benchmarks.crash_points` tries all.

SHARE says of how many states the fast suite tries one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import make_shard
from crash_points import FAILURES, DiskCrash, StoreCrash, recorded_runs_are_dead
from fake_encoder import FakeEncoder
from recorded_disk import Change, Tree, killed, powerless, unflushed

from chiasm.index import build_index
from chiasm.pipeline.make import make_collection

SHARE = 1


@pytest.fixture(autouse=True)
def _dead() -> Iterator[None]:
    with recorded_runs_are_dead():
        yield


@pytest.fixture
def shards(tmp_path) -> list[Path]:
    return [make_shard(tmp_path / "shards" / f"s{n}.tar", 3, seed=n) for n in range(2)]


def try_all(crash):
    if isinstance(crash, DiskCrash):
        k,p=crash.killed(), crash.powerless()
        print(len(crash.recorded.log), len(k), len(p))
        for state in k+p: crash.recover(state)
        for number in FAILURES:
            for point in range(len(crash.recorded.log)): crash.fail(point, number)
    else:
        k=list(crash.killed()); print(len(k))
        for s in k: crash.recover(s)


def test_embed(tmp_path, shards):
    command = lambda to: make_collection(shards, to, FakeEncoder())
    try_all(StoreCrash.record({}, command))
    try_all(DiskCrash.record(tmp_path / "c", command))

def test_anew(tmp_path, shards):
    command = lambda to: make_collection(shards, to, FakeEncoder())
    (tmp_path/"c").mkdir()
    command(tmp_path/"c")
    for n, shard in enumerate(shards):
        make_shard(shard, 4, seed=10 + n)
    try_all(DiskCrash.record(tmp_path / "c", command))

def test_build(tmp_path, shards, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    command = lambda to: build_index(to)
    make_collection(shards, tmp_path/"c", FakeEncoder())
    try_all(DiskCrash.record(tmp_path / "c", command))


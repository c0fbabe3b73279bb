"""Every crash point: after each change of a file, after each loss of power, the command is run
again and the collection is the one that nobody disturbed.

A command is recorded once. Each state in which a kill or a loss of power can leave its folder is
then written out, and the command is run in it. `SOME` bounds how many states the fast suite tries;
`python -m benchmarks.crash_points` tries all.
"""

from __future__ import annotations

import errno
import importlib
import itertools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import make_shard
from fake_encoder import FakeEncoder
from recorded_disk import RecordedDisk, Tree, distinct, killed, powerless, using

from chiasm.index import build_index
from chiasm.index.verify import check
from chiasm.pipeline.errors import ChiasmError
from chiasm.pipeline.make import make_collection

FOREIGN = {  # no file of chiasm: neither read nor removed
    "notes.txt": b"a person's own",
    "embeddings/.notes.swp.tmp": b"a person's own",
    "ledger/readme.md": b"a person's own",
    "index/segments/mine/data.f16": b"a person's own",
}
UNTIMED = ("seconds", "span")


@dataclass(frozen=True)
class Crash:
    """A recorded command. again: runs it in `root` as it now is. expected: what it leaves there."""

    root: Path
    disk: RecordedDisk
    again: Callable[[], object]
    expected: dict[str, bytes]

    def states(self) -> list[Tree]:
        before, log = self.disk.before, self.disk.log
        return list(distinct(itertools.chain(killed(before, log), powerless(before, log))))

    def recover(self, state: Tree) -> None:
        state.write(self.root)
        self.again()
        assert lasting(self.root) == self.expected
        assert check(self.root).findings == []


def record(root: Path, command: Callable[[], object]) -> Crash:
    disk = RecordedDisk(root)
    with using(disk):
        command()
    return Crash(root, disk, command, lasting(root))


def lasting(root: Path) -> dict[str, bytes]:
    """What a collection holds for good: every file but runs, without times and names of builds."""
    found: dict[str, bytes] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_dir() or name.startswith("runs/"):
            continue
        content = path.read_bytes()
        if name.startswith("ledger/") and name.endswith(".json"):
            entry = {k: v for k, v in json.loads(content).items() if k not in UNTIMED}
            content = json.dumps(entry, sort_keys=True).encode()
        if name.startswith("index/") and name not in FOREIGN:
            continue
        found[name] = content
    return found


@pytest.fixture
def shards(tmp_path) -> list[Path]:
    return [make_shard(tmp_path / "shards" / f"s{n}.tar", 3, seed=n) for n in range(2)]


@pytest.fixture
def root(tmp_path) -> Path:
    root = tmp_path / "c"
    for name, content in FOREIGN.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


@pytest.fixture(autouse=True)
def every_recorded_run_is_dead(monkeypatch):
    monkeypatch.setattr(importlib.import_module("chiasm.pipeline.collection.runs"), "process_alive", lambda *_: False)
    monkeypatch.setattr(importlib.import_module("chiasm.pipeline.collection.runs"), "ORPHAN_SECONDS", 0.0)


def try_every_failure(crash: Crash, number: int) -> int:
    """Every change fails once with `number`: the command says so in one line or goes on, and run
    again it leaves what it should. Returns how many points were tried."""
    for point in range(len(crash.disk.log)):
        crash.disk.before.write(crash.root)
        with using(RecordedDisk(crash.root, fail_at=point, error=number)):
            try:
                crash.again()
            except ChiasmError as error:
                assert os.strerror(number) in str(error) or "no space left" in str(error)
        crash.recover(Tree.read(crash.root))
    return len(crash.disk.log)


def test_embed(root, shards):
    crash = record(root, lambda: make_collection(shards, root, FakeEncoder()))
    states = crash.states()
    print(len(crash.disk.log), len(states))
    for state in states:
        crash.recover(state)


def test_embed_errors(root, shards):
    crash = record(root, lambda: make_collection(shards, root, FakeEncoder()))
    try_every_failure(crash, errno.ENOSPC)
    try_every_failure(crash, errno.EIO)


def test_embed_anew(root, shards):
    make_collection(shards, root, FakeEncoder())
    for n, shard in enumerate(shards):
        make_shard(shard, 4, seed=10 + n)
    crash = record(root, lambda: make_collection(shards, root, FakeEncoder()))
    states = crash.states()
    print(len(crash.disk.log), len(states))
    for state in states:
        crash.recover(state)


def test_build(root, shards):
    make_collection(shards, root, FakeEncoder())
    crash = record(root, lambda: build_index(root))
    states = crash.states()
    print(len(crash.disk.log), len(states))
    for state in states:
        crash.recover(state)


def test_build_errors(root, shards):
    make_collection(shards, root, FakeEncoder())
    crash = record(root, lambda: build_index(root))
    try_every_failure(crash, errno.ENOSPC)
    try_every_failure(crash, errno.EIO)

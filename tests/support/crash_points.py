"""Every state in which a crash can leave a collection, and what the command run again makes of it.

A command is recorded once, on a disk (`recorded_disk.py`) or in a store (`simulated_store.py`).
Each state that a kill, a loss of power or a failed call can leave is then written out and the
command is run in it. It must leave the collection that nobody disturbed, to the byte, with nothing
half-written and nothing of anybody else's touched.
"""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from fake_encoder import FakeEncoder
from recorded_disk import RecordedDisk, Tree, distinct, killed, powerless, using
from simulated_store import Object, SimulatedStore, using_store
from tiny_shards import make_shard

from chiasm.index import build_index
from chiasm.index.plan import IndexSettings
from chiasm.index.segments import numbers, run_of_folder
from chiasm.index.segments.generations import read_manifest
from chiasm.index.verify import check
from chiasm.pipeline.collection import FOLDERS, Run
from chiasm.pipeline.collection.processes import Machine
from chiasm.pipeline.errors import ChiasmError
from chiasm.pipeline.forget import forget
from chiasm.pipeline.make import make_collection
from chiasm.pipeline.relocate import relocate
from chiasm.pipeline.storage import Folder, is_temporary
from chiasm.pipeline.storage.disk import Disk
from chiasm.pipeline.timing import SystemClock

STORE_ROOT = "s3://bucket/c"
FOREIGN = {  # a person's own: never read, never removed
    "notes.txt": b"1",
    "embeddings/.notes.swp.tmp": b"2",
    "ledger/readme.md": b"3",
    "index/segments/mine/data.f16": b"4",
    "index/generations/old.json": b"5",
}
UNTIMED = ("seconds", "span", "attempts")  # of a ledger entry: what one run and another differ in


# Makes what a command needs in a folder and in the collection; returns the command.
Story = Callable[[Path, str], Callable[[], object]]


class Lost(AssertionError):
    """A crash has cost something."""


class Unflushed(Disk):
    """A disk that flushes nothing, for states whose recovery nobody interrupts."""

    def flush_file(self, file: io.FileIO) -> None:
        return

    def flush_folder(self, path: str) -> None:
        return


@dataclass
class DiskCrash:
    """A recorded command on this machine's disk. expected: what it leaves for good."""

    root: Path
    command: Callable[[], object]
    recorded: RecordedDisk
    expected: dict[str, bytes]

    @classmethod
    def record(cls, folder: Path, story: Story) -> DiskCrash:
        """folder: an empty one, for the collection and its shards."""
        root = folder / "c"
        for name, content in FOREIGN.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
        command = story(folder, str(root))
        disk = RecordedDisk(root)
        with using(disk):
            command()
        made = cls(root, command, disk, lasting(Tree.read(root).files()))
        made._verify()
        return made

    def killed(self) -> list[Tree]:
        """What a kill leaves, after each change and in the middle of each write."""
        return list(distinct(killed(self.recorded.before, self.recorded.log)))

    def powerless(self) -> Iterator[Tree]:
        """What a loss of power leaves, beyond that."""
        before, log = self.recorded.before, self.recorded.log
        states = distinct(itertools.chain(killed(before, log), powerless(before, log)))
        return itertools.islice(states, len(self.killed()), None)

    def recover(self, state: Tree) -> None:
        state.write(self.root)
        with using(Unflushed()):
            self.command()
        self._verify()

    def fail(self, point: int, number: int) -> None:
        """Change number `point` fails with an errno, and the command is run again."""
        self.recorded.before.write(self.root)
        with using(RecordedDisk(self.root, fail_at=point, error=number)):
            try:
                self.command()
            except ChiasmError as error:
                reasons = (os.strerror(number), "no space left")
                if not any(reason in str(error) for reason in reasons):
                    raise Lost(f"{error}: it does not say why") from error
        self.recover(Tree.read(self.root))

    def _verify(self) -> None:
        verify(str(self.root), Tree.read(self.root).files(), self.expected)


@dataclass
class StoreCrash:
    """The same in an object store."""

    command: Callable[[], object]
    before: dict[str, Object]
    log: list[tuple[str, Object | None]]
    expected: dict[str, bytes]

    @classmethod
    def record(cls, folder: Path, story: Story) -> StoreCrash:
        """folder: an empty one, for the shards."""
        own = {f"{_PREFIX}{name}": Object(content) for name, content in FOREIGN.items()}
        store = SimulatedStore(objects=own)
        with using_store(store):
            command = story(folder, STORE_ROOT)
            before = dict(store.objects)
            store.log.clear()
            command()
            made = cls(command, before, store.log, lasting(_files(store)))
            made._verify(store)
        return made

    def killed(self) -> Iterator[dict[str, Object]]:
        """What a kill leaves: after each put and each removal."""
        objects = dict(self.before)
        yield dict(objects)
        for path, new in self.log:
            if new is None:
                del objects[path]
            else:
                objects[path] = new
            yield dict(objects)

    def recover(self, state: dict[str, Object]) -> None:
        store = SimulatedStore(objects=dict(state))
        with using_store(store):
            self.command()
            self._verify(store)

    def _verify(self, store: SimulatedStore) -> None:
        verify(STORE_ROOT, _files(store), self.expected)


_PREFIX = STORE_ROOT.removeprefix("s3://") + "/"


def _files(store: SimulatedStore) -> dict[str, bytes]:
    return {path.removeprefix(_PREFIX): found.data for path, found in store.objects.items()}


def verify(root: str, files: dict[str, bytes], expected: dict[str, bytes]) -> None:
    """Raises Lost where the collection is not the one that nobody disturbed."""
    found = lasting(files)
    if found != expected:
        differ = sorted(
            name for name in {*found, *expected} if found.get(name) != expected.get(name)
        )
        raise Lost(f"{differ} differ from what an undisturbed run leaves")
    touched = [name for name, content in FOREIGN.items() if files.get(name) != content]
    if touched:
        raise Lost(f"{touched} are a person's own and are not what they were")
    halves = [name for name in files if is_temporary(name) and name not in FOREIGN]
    if halves:
        raise Lost(f"{halves} are left")
    folder = Folder(root)
    named: set[str] = set()
    for number in numbers(folder):
        manifest = read_manifest(folder, number)
        named |= {f"index/segments/{entry.id}" for entry in manifest.segments}
        named |= {entry.file.rpartition("/")[0] for entry in manifest.trained.values()}
    folders = {name.rpartition("/")[0] for name in files}
    unnamed = {name for name in folders if run_of_folder(name) is not None} - named
    if unnamed:
        raise Lost(f"{unnamed} are left, and no generation names them")
    if findings := check(root).findings:
        raise Lost(f"check finds {findings}")


def lasting(files: dict[str, bytes]) -> dict[str, bytes]:
    """What a collection holds for good: no runs, no summaries of runs, no times, nothing below
    `index/` but a person's own."""
    found: dict[str, bytes] = {}
    for name, content in files.items():
        ours_of_a_run = name.startswith(("runs/", "summaries/", "index/"))
        if ours_of_a_run and name not in FOREIGN:
            continue
        if name.startswith("ledger/") and name.endswith(".json"):
            entry = {k: v for k, v in json.loads(content).items() if k not in UNTIMED}
            content = json.dumps(entry, sort_keys=True).encode()
        found[name] = content
    return found


@contextmanager
def recorded_runs_are_dead() -> Iterator[None]:
    """Every other run of this machine counts as killed: a recorded one was this very process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Machine, "alive", lambda self, process: False)
        patch.setattr(SystemClock, "sleep", lambda self, seconds: None)
        yield


FAILURES = (errno.ENOSPC, errno.EIO)


def _shards(folder: Path, samples: int = 3, seed: int = 0) -> list[Path]:
    return [make_shard(folder / "shards" / f"s{n}.tar", samples, seed=seed + n) for n in range(2)]


def _embed(folder: Path, to: str) -> Callable[[], object]:
    shards = _shards(folder)
    return lambda: make_collection(shards, to, FakeEncoder())


def _embed_anew(folder: Path, to: str) -> Callable[[], object]:
    _embed(folder, to)()
    shards = _shards(folder, 4, seed=10)
    return lambda: make_collection(shards, to, FakeEncoder())


def _build(folder: Path, to: str) -> Callable[[], object]:
    _embed(folder, to)()
    return lambda: build_index(to)


def _build_again(folder: Path, to: str) -> Callable[[], object]:
    """Publishing beside a live generation, and sweeping what it replaces."""
    _build(folder, to)()
    _embed_anew(folder, to)()
    settings = IndexSettings(keep_generations=1, keep_seconds=0)
    return lambda: build_index(to, settings=settings)


def _relocate(folder: Path, to: str) -> Callable[[], object]:
    _build(folder, to)()
    old, new = folder / "shards", folder / "elsewhere"
    shutil.copytree(old, new, copy_function=shutil.copy2)
    return lambda: relocate(Folder(to), str(old), str(new))


def _forget(folder: Path, to: str) -> Callable[[], object]:
    _embed(folder, to)()

    def command() -> None:
        forget(Folder(to), [str(folder / "shards" / "s0.tar")])
        # Called again when all is done it does not begin a run: the next run sweeps.
        with Run(Folder(to), "embed", {}) as run:
            run.sweep(FOLDERS)
            run.finish("done", {})

    return command


COMMANDS: dict[str, Story] = {
    "embed": _embed,
    "embed anew": _embed_anew,
    "index build": _build,
    "index build again": _build_again,
    "relocate": _relocate,
    "forget": _forget,
}

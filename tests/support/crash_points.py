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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from recorded_disk import RecordedDisk, Tree, distinct, killed, powerless, using
from simulated_store import Object, SimulatedStore, using_store

from chiasm.index.segments import numbers, run_of_folder, segment_file
from chiasm.index.segments.generations import read_manifest
from chiasm.index.segments.names import CURRENT, manifest_name
from chiasm.index.verify import check
from chiasm.pipeline.collection import embeddings
from chiasm.pipeline.collection.processes import Machine
from chiasm.pipeline.errors import ChiasmError
from chiasm.pipeline.storage import Folder, is_temporary, retry
from chiasm.pipeline.storage.disk import Disk
from chiasm.pipeline.storage.store_errors import TransientError
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
Prepare = Callable[[Path, str], Callable[[], object]]


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
    """A recorded command on this machine's disk. expected: what it leaves for good.
    lasting_shards: those that are done before it and after it."""

    root: Path
    command: Callable[[], object]
    recorded: RecordedDisk
    expected: dict[str, bytes]
    lasting_shards: set[str]
    live: list[dict[str, bytes]]  # the live segments before it and after it

    @classmethod
    def record(cls, folder: Path, prepare: Prepare) -> DiskCrash:
        """folder: an empty one, for the collection and its shards."""
        root = folder / "c"
        for name, content in FOREIGN.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
        command = prepare(folder, str(root))
        disk, done = RecordedDisk(root), done_shards(str(root))
        with using(disk):
            command()
        done &= done_shards(str(root))
        after = Tree.read(root).files()
        live = [live_segments(disk.before.files()), live_segments(after)]
        made = cls(root, command, disk, lasting(after), done, live)
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
        for path in self.root.glob("runs/.*.tmp"):  # some time ago: no run is about to begin
            os.utime(path, (0, 0))
        require_old_or_new(state.files(), self.live)
        with using(Unflushed()):
            require_rows(str(self.root), self.lasting_shards)
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
    lasting_shards: set[str]
    requests: int  # that it makes
    live: list[dict[str, bytes]]  # as of a disk

    @classmethod
    def record(cls, folder: Path, prepare: Prepare) -> StoreCrash:
        """folder: an empty one, for the shards."""
        own = {f"{_PREFIX}{name}": Object(content) for name, content in FOREIGN.items()}
        store = SimulatedStore(objects=own)
        with using_store(store):
            command = prepare(folder, STORE_ROOT)
            before, done = dict(store.objects), done_shards(STORE_ROOT)
            store.log.clear()
            requests: list[str] = []
            store.step = lambda when, kind, path: requests.append(when)
            command()
            store.step = lambda when, kind, path: None
            done &= done_shards(STORE_ROOT)
            count = requests.count("before")
            after = _files(store)
            live = [live_segments(_contents(before)), live_segments(after)]
            made = cls(command, before, store.log, lasting(after), done, count, live)
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

    def lose_answer(self, number: int) -> None:
        """The answer to request `number` is lost: the command asks again, and all is as usual."""
        store = SimulatedStore(_fault("after", lambda count: count == number), dict(self.before))
        with using_store(store), _no_waits():
            self.command()
            self._verify(store)

    def lose_store(self, number: int) -> None:
        """From request `number` on none reaches the store, until the command is run again."""
        store = SimulatedStore(_fault("before", lambda count: count >= number), dict(self.before))
        with using_store(store), _no_waits():
            try:
                self.command()
            except ChiasmError as error:
                if UNREACHABLE not in str(error):
                    raise Lost(f"{error}: it does not say why") from error
        self.recover(store.objects)

    def recover(self, state: dict[str, Object]) -> None:
        store = SimulatedStore(objects=dict(state))
        require_old_or_new(_contents(state), self.live)
        with using_store(store):
            require_rows(STORE_ROOT, self.lasting_shards)
            self.command()
            self._verify(store)

    def _verify(self, store: SimulatedStore) -> None:
        verify(STORE_ROOT, _files(store), self.expected)


UNREACHABLE = "the store does not answer"


def _fault(moment: str, when: Callable[[int], bool]) -> Callable[[str, str, str], None]:
    """A step of a store that raises before or after those requests whose number `when` picks."""
    numbers = itertools.count()

    def step(at: str, kind: str, path: str) -> None:
        if at == moment and when(next(numbers)):
            raise TransientError(UNREACHABLE)

    return step


@contextmanager
def _no_waits() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retry, "time", SimpleNamespace(sleep=lambda seconds: None))
        yield


_PREFIX = STORE_ROOT.removeprefix("s3://") + "/"


def _files(store: SimulatedStore) -> dict[str, bytes]:
    return _contents(store.objects)


def _contents(objects: dict[str, Object]) -> dict[str, bytes]:
    return {path.removeprefix(_PREFIX): found.data for path, found in objects.items()}


def done_shards(root: str) -> set[str]:
    """The ids of the shards whose rows are there, and their accounts with them."""
    return {file.shard_id for file in embeddings(Folder(root))}


def require_rows(root: str, shards: set[str]) -> None:
    """Raises Lost where the rows of a shard, old or new, are not there without a second run."""
    if missing := shards - done_shards(root):
        raise Lost(f"shards {missing} have neither their old rows nor their new ones")


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
        named |= {name.rpartition("/")[0] for name in manifest.shared_files()}
    folders = {name.rpartition("/")[0] for name in files}
    unnamed = {name for name in folders if run_of_folder(name) is not None} - named
    if unnamed:
        raise Lost(f"{unnamed} are left, and no generation names them")
    if findings := check(root).findings:
        raise Lost(f"check finds {findings}")


def lasting(files: dict[str, bytes]) -> dict[str, bytes]:
    """What a collection holds for good: no runs, no summaries of runs, no times; below `index/` a
    person's own, and the live segments, whose names are of their run, by their order."""
    found = live_segments(files)
    for name, content in files.items():
        ours_of_a_run = name.startswith(("runs/", "summaries/", "index/"))
        if ours_of_a_run and name not in FOREIGN:
            continue
        if name.startswith("ledger/") and name.endswith(".json"):
            entry = {k: v for k, v in json.loads(content).items() if k not in UNTIMED}
            content = json.dumps(entry, sort_keys=True).encode()
        found[name] = content
    return found


def require_old_or_new(files: dict[str, bytes], allowed: list[dict[str, bytes]]) -> None:
    """Raises Lost where the live generation is neither what it was nor what it is to be."""
    if live_segments(files) not in allowed:
        raise Lost("the live generation is neither the old one nor the new one")


def live_segments(files: dict[str, bytes]) -> dict[str, bytes]:
    """The files of the live generation's segments, but for those that say which run wrote them, and
    what is deleted in each."""
    if CURRENT not in files:
        return {}
    number = int(files[CURRENT].partition(b"\n")[0])
    manifest = json.loads(files[manifest_name(number)])
    found: dict[str, bytes] = {}
    for number, segment in enumerate(manifest["segments"]):
        if deletions := segment["deletions"]:
            found[f"segment {number}/deleted"] = files[deletions["file"]]
        folder = segment_file(segment["id"], "")
        for name, content in files.items():
            if name.startswith(folder) and not name.endswith("/segment.json"):
                found[f"segment {number}/{name.removeprefix(folder)}"] = content
    return found


@contextmanager
def recorded_runs_are_dead() -> Iterator[None]:
    """Every other run of this machine counts as killed: a recorded one was this very process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Machine, "alive", lambda self, process: False)
        patch.setattr(SystemClock, "sleep", lambda self, seconds: None)
        yield


FAILURES = (errno.ENOSPC, errno.EIO)

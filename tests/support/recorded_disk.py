"""A disk that records every change, and the states in which a crash may leave it.

`RecordedDisk` stands at the door to the file system (`pipeline/storage/disk.py`). Its log holds
each change of names or contents in order. A process killed after n of them leaves the first n. A
machine that loses power leaves, beside what was flushed, any part of the rest: `surviving` builds
that tree. The model is stricter than most file systems: a flush of a file does not flush its name,
and changes of names in one folder reach the disk in any order.
"""

from __future__ import annotations

import errno
import io
import itertools
import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from chiasm.pipeline.storage import schemes
from chiasm.pipeline.storage.disk import Disk
from chiasm.pipeline.storage.local import LocalFiles

FOLDER = -1  # in a tree: a name of a folder; other names have the number of their file
SUBSETS = 200  # of unflushed changes that are tried where there are too many to try all


@dataclass(frozen=True)
class Change:
    """One change. file: which file it is about, FOLDER for a folder's name. data: what was written,
    at `offset`. path: relative to the root, as is `old`, the name before a rename."""

    kind: str  # create, write, rename, link, make_folder, remove, remove_folder, flush_*
    path: str
    file: int = FOLDER
    old: str = ""
    offset: int = 0
    data: bytes = b""


@dataclass(frozen=True)
class Tree:
    """names: path relative to the root -> file number or FOLDER. contents: by file number."""

    names: dict[str, int]
    contents: dict[int, bytes]

    @classmethod
    def read(cls, root: Path) -> Tree:
        names: dict[str, int] = {}
        contents: dict[int, bytes] = {}
        for number, path in enumerate(sorted(root.rglob("*"))):
            name = str(path.relative_to(root))
            names[name] = FOLDER if path.is_dir() else number
            if not path.is_dir():
                contents[number] = path.read_bytes()
        return cls(names, contents)

    def files(self) -> dict[str, bytes]:
        return {name: self.contents[file] for name, file in self.names.items() if file != FOLDER}

    def write(self, root: Path) -> None:
        """Make `root` hold exactly this tree."""
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        for name, file in sorted(self.names.items()):
            if file == FOLDER:
                (root / name).mkdir()
            else:
                (root / name).write_bytes(self.contents[file])


class RecordedDisk(Disk):
    """Records changes below `root`, and at change number `fail_at` raises `error`; after it, every
    further change that needs room fails too where `error` is ENOSPC."""

    def __init__(self, root: Path, fail_at: int | None = None, error: int = errno.EIO) -> None:
        self.root, self.fail_at, self.error = root, fail_at, error
        self.before = Tree.read(root)
        self.log: list[Change] = []
        self._files = dict(self.before.names)
        self._numbers = itertools.count(len(self._files))
        self._failed = False

    def change(self, change: Change, action: Callable[[], object]) -> object:
        needs_room = change.kind in ("create", "write", "make_folder")
        if (len(self.log) == self.fail_at and not self._failed) or (
            self._failed and self.error == errno.ENOSPC and needs_room
        ):
            self._failed = True
            raise OSError(self.error, os.strerror(self.error), change.path)
        result = action()
        self.log.append(change)
        return result

    def create(self, path: str) -> io.FileIO:
        name, number = self._name(path), next(self._numbers)
        made: list[RecordedFile] = []
        self.change(
            Change("create", name, number), lambda: made.append(RecordedFile(self, path, number))
        )
        self._files[name] = number
        return made[0]

    def flush_file(self, file: io.FileIO) -> None:  # recorded, not done: no real power is lost
        assert isinstance(file, RecordedFile)
        self.change(Change("flush_file", self._name(file.path), file.number), lambda: None)

    def flush_folder(self, path: str) -> None:
        self.change(Change("flush_folder", self._name(path)), lambda: None)

    def rename(self, old: str, new: str) -> None:
        number = self._files[self._name(old)]
        change = Change("rename", self._name(new), number, old=self._name(old))
        self.change(change, lambda: super(RecordedDisk, self).rename(old, new))
        self._files[self._name(new)] = self._files.pop(self._name(old))

    def link(self, old: str, new: str) -> None:
        number = self._files[self._name(old)]
        change = Change("link", self._name(new), number)
        self.change(change, lambda: super(RecordedDisk, self).link(old, new))
        self._files[self._name(new)] = number

    def make_folder(self, path: str) -> None:
        change = Change("make_folder", self._name(path))
        self.change(change, lambda: super(RecordedDisk, self).make_folder(path))

    def remove(self, path: str) -> None:
        super().stat(os.path.dirname(path))
        if os.path.lexists(path):
            change = Change("remove", self._name(path), self._files[self._name(path)])
            self.change(change, lambda: super(RecordedDisk, self).remove(path))
            del self._files[self._name(path)]
        else:
            super().remove(path)

    def discard(self, path: str) -> None:
        self.remove(path)

    def remove_folder(self, path: str) -> None:
        change = Change("remove_folder", self._name(path))
        self.change(change, lambda: super(RecordedDisk, self).remove_folder(path))

    def _name(self, path: str) -> str:
        return os.path.relpath(path, self.root)


class RecordedFile(io.FileIO):
    """A file whose writes are recorded."""

    def __init__(self, disk: RecordedDisk, path: str, number: int) -> None:
        super().__init__(path, "xb")
        self._disk, self.path, self.number = disk, path, number
        self._offset = 0

    def write(self, data) -> int:  # pyrefly: ignore
        written: list[int] = []
        content = bytes(data)
        self._disk.change(
            Change("write", self.path, self.number, offset=self._offset, data=content),
            lambda: written.append(super(RecordedFile, self).write(content)),
        )
        assert written == [len(content)]
        self._offset += len(content)
        return len(content)


def surviving(before: Tree, log: Sequence[Change], undone: frozenset[int] = frozenset()) -> Tree:
    """The tree after the changes of `log`, without those whose numbers are in `undone`."""
    names, contents = dict(before.names), dict(before.contents)
    for number, change in enumerate(log):
        if number in undone:
            continue
        if change.kind == "write":
            content = contents.get(change.file, b"").ljust(change.offset, b"\0")
            end = change.offset + len(change.data)
            contents[change.file] = content[: change.offset] + change.data + content[end:]
        elif change.kind in ("create", "link", "rename", "make_folder"):
            names[change.path] = change.file
            if change.kind == "rename":
                names.pop(change.old, None)
        elif change.kind in ("remove", "remove_folder"):
            names.pop(change.path, None)
    kept = {
        name: file
        for name, file in names.items()
        if all(names.get(str(above)) == FOLDER for above in list(Path(name).parents)[:-1])
    }
    return Tree(kept, {file: contents.get(file, b"") for file in kept.values() if file != FOLDER})


def unflushed(log: Sequence[Change]) -> list[int]:
    """The numbers of changes that a loss of power may still undo."""
    pending: dict[int, Change] = {}
    for number, change in enumerate(log):
        if change.kind == "flush_file":
            pending = {
                n: c for n, c in pending.items() if c.kind != "write" or c.file != change.file
            }
        elif change.kind == "flush_folder":
            pending = {
                n: c
                for n, c in pending.items()
                if c.kind == "write" or os.path.dirname(c.path) != change.path.removeprefix(".")
            }
        else:
            pending[number] = change
    return sorted(pending)


def killed(before: Tree, log: Sequence[Change]) -> Iterator[Tree]:
    """The trees that a kill leaves: before each change, in the middle of each write, at the end."""
    for count in range(len(log) + 1):
        yield surviving(before, log[:count])
        if count < len(log) and log[count].kind == "write":
            change = log[count]
            half = Change(
                "write", change.path, change.file, "", change.offset,
                change.data[: len(change.data) // 2],
            )  # fmt: skip
            yield surviving(before, [*log[:count], half])


def powerless(before: Tree, log: Sequence[Change], seed: int = 0) -> Iterator[Tree]:
    """The trees that a loss of power leaves after each change: every subset of what was not
    flushed; where there are too many, every prefix, each one lost alone, and seeded subsets."""
    rng = random.Random(seed)
    for count in range(len(log) + 1):
        part = log[:count]
        pending = unflushed(part)
        if 2 ** len(pending) <= SUBSETS:
            subsets = itertools.chain.from_iterable(
                itertools.combinations(pending, size) for size in range(1, len(pending) + 1)
            )
        else:
            drawn = (rng.sample(pending, rng.randint(1, len(pending))) for _ in range(SUBSETS))
            prefixes = (pending[start:] for start in range(len(pending)))
            subsets = itertools.chain(prefixes, ([one] for one in pending), drawn)
        for undone in subsets:
            yield surviving(before, part, frozenset(undone))


def distinct(trees: Iterator[Tree]) -> Iterator[Tree]:
    """Each tree once, whatever its files are numbered."""
    seen: set[int] = set()
    for tree in trees:
        digest = hash(frozenset(tree.files().items()) | frozenset(tree.names))
        if digest not in seen:
            seen.add(digest)
            yield tree


@contextmanager
def using(disk: Disk) -> Iterator[None]:
    """Local files of this process go through `disk`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(schemes.BACKENDS, "file", LocalFiles(disk))
        yield

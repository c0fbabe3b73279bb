"""What travels with a job: our package by content, and what a person names, without what they did
not mean to send.

A folder of a project holds more than it shows: `.env`, `.aws`, links into a home. So dotfiles, and
links that lead out of the folder, stay; a file that is named itself travels whatever its name is.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from chiasm.jobs.cluster.session import packages
from chiasm.pipeline.errors import UsageError

EXCLUDES = ("__pycache__", "*.pyc", "*.tar", "*.tar.gz", "*.tgz", "*.tar.zst", "*.parquet")
# Ray keeps the files of a job in the memory of the head, and refuses more with an unclear message.
LIMIT_BYTES = 100 * 2**20
# The person's files are here, the job's current folder: not beside chiasm, which is on the path of
# every Python of the job, where their random.py would stand before Python's own.
FILES = "submitted"
ROOMS = ("pipeline", "index", "jobs")  # links in a checkout, folders where chiasm is installed
MOST_NAMED = 10  # of what was left out


@dataclass
class Packed:
    """What was packed. sizes: name in the job -> bytes. left_out: what a person named -> what of it
    stays here, with the reason. excluded: how many files and folders a glob left out."""

    sizes: dict[str, int] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    excluded: int = 0

    def lines(self) -> list[str]:
        """What a person should know before the job starts."""
        largest = max(self.sizes, key=lambda name: self.sizes[name])
        total, most = sum(self.sizes.values()), self.sizes[largest]
        lines = [
            f"packed {len(self.sizes):,} files, {_mib(total)}; the largest is {largest}, "
            f"{_mib(most)}"
        ]
        if self.excluded:
            lines.append(f"left out {self.excluded:,} by --exclude and its defaults")
        lines += [f"left out {name}" for name in self.left_out[:MOST_NAMED]]
        if len(self.left_out) > MOST_NAMED:
            lines.append(f"left out {len(self.left_out) - MOST_NAMED:,} more such names")
        return lines


def pack(folder: Path, files: Sequence[str], excludes: Sequence[str]) -> Packed:
    """Copy our package into `folder` and what a person names into `folder/FILES`. excludes: globs
    of names within folders. Raises UsageError for what is not there, twice, or too much."""
    packed = Packed()
    (folder / FILES).mkdir()
    ours = Path(packages()[0])
    _pack_folder(ours, folder / "chiasm", "chiasm", EXCLUDES[:2], Packed(sizes=packed.sizes))
    for room in ROOMS:
        target = folder / "chiasm" / room
        if not target.exists():
            unseen = Packed(sizes=packed.sizes)
            _pack_folder((ours / room).resolve(), target, f"chiasm/{room}", EXCLUDES[:2], unseen)
    for source in files:
        path = Path(source)
        name = path.name if path.name not in ("", "..") else path.resolve().name
        target = folder / FILES / name
        if not name or not (path.is_dir() or path.is_file()):
            raise UsageError(
                f"--file {source}",
                expected="a file or folder to upload with the job",
                found="the whole file system" if not name else "none",
            )
        if target.exists():
            raise UsageError(
                f"--file {source}",
                expected="names that differ: the job finds them side by side",
                found=f"two called {name}",
                do="rename one, or name the folder that holds both",
            )
        if path.is_dir():
            target.mkdir()
            _pack_folder(path, target, source, excludes, packed)
        else:
            _copy(path.resolve(), target, name, packed)
    return packed


def _pack_folder(
    root: Path, target: Path, label: str, excludes: Sequence[str], packed: Packed
) -> None:
    """Copy a folder's regular files, without what is not meant to travel."""
    for path, why in _walk(root, root, excludes):
        name = path.relative_to(root)
        if why == "excluded":
            packed.excluded += 1
        elif why:
            packed.left_out.append(f"{os.path.join(label, name)}: {why}")
        else:
            source = path.resolve() if path.is_symlink() else path
            _copy(source, target / name, os.path.join(label, name), packed)


def _walk(folder: Path, root: Path, excludes: Sequence[str]) -> Iterator[tuple[Path, str]]:
    """Each file below, and what is left out with the reason; a folder left out is not entered."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        yield folder, error.strerror or str(error)
        return
    for entry in entries:
        path = Path(entry.path)
        if any(fnmatch(entry.name, glob) for glob in excludes):
            yield path, "excluded"
        elif entry.name.startswith("."):
            yield path, "a dotfile; give it a --file of its own where the job needs it"
        elif entry.is_symlink():
            yield path, _link_problem(path, root)
        elif entry.is_dir():
            yield from _walk(path, root, excludes)
        else:
            yield path, "" if entry.is_file() else "no regular file"


def _link_problem(link: Path, root: Path) -> str:
    """Why a link is left out; empty for one to a file of the same folder that travels itself."""
    try:
        leads_to = link.resolve(strict=True).relative_to(root.resolve())
    except (OSError, RuntimeError):  # RuntimeError: a circle of links
        return "a link that leads nowhere"
    except ValueError:
        return "a link out of the folder"
    if any(part.startswith(".") for part in leads_to.parts):
        return "a link to a dotfile"
    return "" if (root / leads_to).is_file() else "a link to a folder"


def _copy(source: Path, target: Path, name: str, packed: Packed) -> None:
    try:
        # A link that has just taken the file's place is not followed, a pipe not waited for.
        opened = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(opened, "rb") as file:
            status = os.fstat(file.fileno())
            packed.sizes[name] = status.st_size
            _require_room(packed)
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as copy:
                shutil.copyfileobj(file, copy)
        target.chmod(stat.S_IMODE(status.st_mode) | stat.S_IRUSR | stat.S_IWUSR)
    except OSError as error:
        raise UsageError(
            name, expected="a file that can be read and copied", found=error.strerror or str(error)
        ) from error


def _require_room(packed: Packed) -> None:
    total = sum(packed.sizes.values())
    if total > LIMIT_BYTES:
        largest = sorted(packed.sizes, key=lambda name: -packed.sizes[name])[:3]
        raise UsageError(
            "the job's files",
            expected=f"at most {LIMIT_BYTES >> 20} MiB, which the cluster's head keeps in memory",
            found=f"{_mib(total)} or more, the largest "
            + ", ".join(f"{name} ({_mib(packed.sizes[name])})" for name in largest),
            do="leave large files where the cluster can read them, or --exclude them",
        )


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"

"""Where a file of results may be written: over no device, collection, input or other output."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from chiasm.pipeline.errors import StorageError, UsageError
from chiasm.pipeline.storage import Folder, canonical_url, display_name, require_writable


def file_to_write(
    to: str, collection: Folder | None = None, others: Mapping[str, str] | None = None
) -> tuple[Folder, str]:
    """The folder and the name of a file to write, by path or URL; of a symbolic link, those of the
    file that it leads to.

    collection: in which it may not be. others: what it may not be, such as {"--queries": "q.txt"}.
    Raises UsageError for these, for what is no name of a file and for a URL of a web server,
    StorageError where something else than a file is there.
    """
    canonical_url(to)  # refuses what is no path
    require_writable(to)
    folder, name = folder_and_name(to)
    if name in ("", ".", ".."):
        raise UsageError(to, expected="a file to write", found="the name of a folder")
    if folder.local is not None:
        target = _followed(to, folder.local / name)
        folder, name = Folder(str(target.parent)), target.name
    if collection is not None and _is_inside(folder, name, collection):
        raise UsageError(
            to,
            expected="a file outside the collection",
            found=f"one in {display_name(collection.url)}",
        )
    for option, other in (others or {}).items():
        if _is_same(folder, name, other):
            raise UsageError(to, expected="a file of its own", found=f"that of {option}")
    return folder, name


def folder_and_name(path: str) -> tuple[Folder, str]:
    """The folder of a file, by path or URL, and its name in it."""
    parent, slash, name = path.rpartition("/")
    return Folder(parent or slash or "."), name


def _followed(to: str, given: Path) -> Path:
    """Where a path leads. Renamed into place, a file would take the place of a device, a pipe or a
    link; /dev/stdout may lead to a file that has no name any more."""
    try:
        target = Path(os.path.realpath(given))
        there = given.exists()
        same = there and target.exists() and given.samefile(target)
        if (there and not (same and given.is_file())) or target.is_symlink():
            raise StorageError(to, expected="a file to write", found="something else there")
    except OSError as error:  # a name too long, a folder that may not be entered
        found = error.strerror or str(error)
        raise StorageError(to, expected="a file to write", found=found) from error
    return target


def _is_inside(folder: Folder, name: str, collection: Folder) -> bool:
    """By the folders themselves on this machine, whose names may differ in case."""
    root = collection.local
    if root is None or folder.local is None:
        return folder.url_of(name).startswith(collection.url.rstrip("/") + "/")
    above = (folder.local, *folder.local.parents)
    return root.exists() and any(one.samefile(root) for one in above if one.exists())


def _is_same(folder: Folder, name: str, other: str) -> bool:
    url = canonical_url(other, allow_query=True)
    if folder.url_of(name) == url:
        return True
    mine, others = folder.local and folder.local / name, Folder(url).local
    return bool(mine and others and mine.exists() and others.exists() and mine.samefile(others))

"""Sweeping: removes old generations, segments that no generation names, and temporaries of dead
builds.

Kept are the live generation, the last few and the young ones (readers may have just opened them),
every segment those name, and whatever a running build has written so far. The order makes this safe
beside other builds: first the folders are listed, then the running builds, then the generations. A
build that ends between the first two has published its generation by the third.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from chiasm.index.plan import IndexSettings
from chiasm.index.segments.generations import (
    GENERATIONS,
    Manifest,
    current_number,
    manifest_name,
    numbers,
    read_manifest,
)
from chiasm.index.segments.segment import SEGMENTS, TRAINED, is_segment_file
from chiasm.pipeline.collection import Run
from chiasm.pipeline.errors import CollectionError
from chiasm.pipeline.storage import Folder


def sweep(folder: Folder, run: Run, settings: IndexSettings) -> list[str]:
    """Remove what is not needed any more; returns the names of what was removed."""
    segments, trained = folder.folders(SEGMENTS), folder.folders(TRAINED)
    temporaries = run.remove_temporaries(["index", GENERATIONS, "runs"])
    running = {other.id for other in run.others()}
    kept, old = _generations(folder, settings)
    for name in old:
        folder.remove(name)
    removed = old + temporaries + run.abort_uploads()
    if None in kept:
        return removed  # a newer version's, perhaps: the segments that it names are not known
    named = {name for manifest in kept if manifest for name in _folders_of(manifest)}
    unnamed = [name for name in segments if _base(name).rpartition("-")[0] not in running]
    unnamed += [name for name in trained if _base(name) not in running]
    unnamed = [name for name in unnamed if name not in named]
    for name in unnamed:
        folder.remove_folder(name, is_segment_file)
    return removed + unnamed


def _folders_of(manifest: Manifest) -> Iterator[str]:
    for entry in manifest.segments:
        yield f"{SEGMENTS}/{entry.id}"
    for trained in manifest.trained.values():
        yield trained.file.rpartition("/")[0]


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _generations(
    folder: Folder, settings: IndexSettings
) -> tuple[list[Manifest | None], list[str]]:
    """The manifests to keep (None: one that cannot be read) and the names of those to remove."""
    existing = numbers(folder)
    last = {*existing[-settings.keep_generations :], current_number(folder)}
    kept: list[Manifest | None] = []
    old: list[str] = []
    for number in existing:
        try:
            manifest = read_manifest(folder, number)
        except CollectionError:
            manifest = None
        young = manifest is not None and time.time() - manifest.created < settings.keep_seconds
        if number in last or young:
            kept.append(manifest)
        else:
            old.append(manifest_name(number))
    return kept, old

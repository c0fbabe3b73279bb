"""Making a generation live, beside other builds, without a lock and without a clock.

A build puts its manifest under the next free number (an atomic put-if-absent), then points CURRENT
at it. Killed anywhere before the last step, the old generation stays live. Three things are looked
at in this order, each after the step that makes the look worth something:

  1. The manifest is there: from now on every sweep keeps its segments. Has one marked this build as
     dead before? Then it may not know the manifest. Are the segments whole?
  2. CURRENT was put: is there a generation, published since this build began, that covers more of
     the collection's shards? Then CURRENT is put again, to that one. Every build looks after its
     last put, and all see the same manifests and the same order, so the last look leaves the best.

The cost: the work of the build that loses.
"""

from __future__ import annotations

from chiasm.index.segments.advice import build_command
from chiasm.index.segments.generations import (
    Generation,
    Manifest,
    current_number,
    numbers,
    open_segments,
    open_whole,
    require_whole,
)
from chiasm.index.segments.names import CURRENT, manifest_name, replaced_name
from chiasm.index.segments.segment import Segment
from chiasm.index.segments.stale import EmbeddedShards
from chiasm.pipeline.collection import Run
from chiasm.pipeline.errors import CollectionError
from chiasm.pipeline.storage import Folder, display_name


def live_number(folder: Folder) -> int:
    """The live generation's number, 0 where there is none or CURRENT is damaged."""
    try:
        number = current_number(folder)
    except CollectionError:
        return 0
    return number if number and folder.exists(manifest_name(number)) else 0


def publish(folder: Folder, manifest: Manifest, run: Run, began_with: int) -> int:
    """Make the manifest the live generation; returns the number of the one that is live then.

    That is another where one was published since generation `began_with` was live that covers more
    of the collection's shards. Raises CollectionError, and leaves CURRENT alone, where segments of
    the manifest are not there any more.
    """
    segments = _require_own(folder, manifest)
    new = Generation(0, manifest, segments, folder)
    rivals = _rivals(folder, new, began_with)
    if rivals and (best := _best(folder, [*rivals, new])) is not new:
        return _settle(folder, best, new, began_with, run)
    number = max(numbers(folder), default=0) + 1
    while not folder.write_new(manifest_name(number), manifest.to_json(), run.id):
        number += 1
    # Where one of these fails the manifest stays: another build may have pointed CURRENT at it.
    run.beat()  # a sweep that marks this run after that finds the manifest
    _require_own(folder, manifest)
    new = Generation(number, manifest, segments, folder)
    return _settle(folder, new, new, began_with, run)


def _settle(folder: Folder, chosen: Generation, new: Generation, began_with: int, run: Run) -> int:
    """Point CURRENT at the chosen generation, then at better ones until there is none."""
    while True:
        number, live = chosen.number, live_number(folder)
        if live and live != number:
            # It ceases to be live now, whatever a sweep has noted before it was.
            folder.remove(replaced_name(live))
        if live != number:
            content = f"{number:06d}\n".encode() + chosen.manifest.to_json()
            folder.write_whole(CURRENT, content, run.id)
        candidates = _rivals(folder, new, began_with)
        if new.number and folder.exists(manifest_name(new.number)):
            candidates.append(new)  # not swept, as that of a build that stood still for too long
        if not candidates:
            return number
        chosen = _best(folder, candidates)
        if chosen.number == live_number(folder):
            return chosen.number


def _require_own(folder: Folder, manifest: Manifest) -> tuple[Segment, ...]:
    try:
        segments = open_segments(folder, manifest)
        require_whole(folder, segments)
    except CollectionError as error:
        raise CollectionError(
            display_name(folder.url),
            expected="the segments that this build has written",
            found=f"{error.what}: {error.found}",
            do=f"run {build_command(folder)} again; the live index is as it was",
        ) from error
    return segments


def _rivals(folder: Folder, new: Generation, began_with: int) -> list[Generation]:
    """The whole generations that may be better than `new`: those published since it began, and the
    one that was live then, unless that had other columns."""
    rivals: list[Generation] = []
    for number in numbers(folder):
        if number < max(1, began_with) or number == new.number:
            continue
        try:
            rival = open_whole(folder, number)
        except CollectionError:
            continue
        same_columns = rival.manifest.columns.keys() == new.manifest.columns.keys()
        if rival.manifest.fingerprint == new.manifest.fingerprint and (
            number > began_with or same_columns
        ):
            rivals.append(rival)
    return rivals


def _best(folder: Folder, generations: list[Generation]) -> Generation:
    """The one with the fewest stale shards, of several the last. One that is not published yet has
    number 0 and comes last."""
    if len(generations) == 1:
        return generations[0]
    shards = EmbeddedShards.list(folder)

    def order(generation: Generation) -> tuple[int, float]:
        stale = shards.stale(generation.indexed_shards())
        return -len(stale), generation.number or float("inf")

    return max(generations, key=order)

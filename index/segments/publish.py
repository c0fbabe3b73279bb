"""Making a generation live, beside other builds and edits, without a lock and without a clock.

A command puts its manifest under the number after the newest one (an atomic put-if-absent), then
points CURRENT at it. Killed anywhere before the last step, the old generation stays live. Where the
number is taken, the command begins this again, with what was published meanwhile in view. So the
manifest with number N was made by one who has seen all before it, and numbers are an order:

  edit    (add, delete, compact, rollback) changes the generation that is the best of those before
          it, and is better than all of them. Redone upon another one, it is never dropped: a later
          edit is made upon it, and so is, in the end, every search.
  build   was made of the embeddings alone. It is better than those before it that were published
          since it began, or were live then, unless one covers more of the collection's shards.
          What was deleted since it began stays deleted, row by row; what was deleted before
          is there again.

CURRENT only says which one is the best. Three things are looked at in this order, each after the
step that makes the look worth something:

  1. The manifest is there: from now on every sweep keeps its segments. Has one marked this run as
     dead before? Then it may not know the manifest. Are the segments whole?
  2. Is there a better generation by now? Then CURRENT is put to that one.
  3. CURRENT was put: is there a better one by now? Then it is put again. Every command looks after
     its last put, and all see the same manifests and the same order, so the last look leaves the
     best.

An edit, too, asks for the best generation and not for CURRENT, which a command that was killed
between 1 and 3 may have left behind; then the next command puts it right.

The cost: the work of the build that loses, and of an edit that is made again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from chiasm.index.segments.advice import build_command
from chiasm.index.segments.audit_files import carry_audits
from chiasm.index.segments.deletions import carried_over
from chiasm.index.segments.generations import (
    Generation,
    Manifest,
    current_number,
    numbers,
    open_current,
    open_generation,
    open_segments,
    open_whole,
    read_if_there,
    require_whole,
)
from chiasm.index.segments.names import CURRENT, manifest_name, replaced_name
from chiasm.index.segments.segment import Segment
from chiasm.index.segments.stale import EmbeddedShards
from chiasm.pipeline.collection import Run
from chiasm.pipeline.errors import CollectionError
from chiasm.pipeline.storage import Folder, display_name

# Makes the manifest of an edit of a generation, None where there is nothing to change.
Edit = Callable[[Generation], Manifest | None]


def live_number(folder: Folder) -> int:
    """The live generation's number, 0 where there is none or CURRENT is damaged."""
    try:
        number = current_number(folder)
    except CollectionError:
        return 0
    return number if number and folder.exists(manifest_name(number)) else 0


def publish(folder: Folder, manifest: Manifest, run: Run, began_with: int) -> int:
    """Make the manifest of a build the live generation; returns the number of the one that is live
    then.

    That is another where one was published since generation `began_with` was live that covers more
    of the collection's shards. Raises CollectionError, and leaves CURRENT alone, where segments of
    the manifest are not there any more.
    """
    built = manifest = replace(manifest, after=began_with)
    segments = _require_own(folder, manifest)
    while True:
        number = _newest(folder) + 1
        new = Generation(0, built, segments, folder)
        rivals = _rivals(folder, new, began_with)
        if rivals:
            if _best(folder, [*rivals, new]) is not new:
                return _settle(folder, new, began_with, run)
            manifest = _without_deleted(folder, new, _best(folder, rivals), began_with, run)
        if folder.write_new(manifest_name(number), manifest.to_json(), run.id):
            break
    # Where one of these fails the manifest stays: another build may have pointed CURRENT at it.
    run.beat()  # a sweep that marks this run after that finds the manifest
    _require_own(folder, manifest)
    return _settle(folder, Generation(number, manifest, segments, folder), began_with, run)


def publish_edit(folder: Folder, run: Run, edit: Edit) -> int:
    """Make what `edit` makes of the best generation the live one; returns the number of the one
    that is live then, which is another where one was published since.

    `edit` is called again where another command was faster. Raises CollectionError where there is
    no generation, and what `edit` raises of one that is still the best.
    """
    while True:
        newest = _newest(folder)
        base = _base(folder)
        try:
            manifest = edit(base)
        except CollectionError:
            if _newest(folder) == newest:
                raise
            continue  # the files of that one may have been swept meanwhile
        if manifest is None:
            return _settle(folder, base, base.number, run)
        manifest = replace(
            manifest,
            run=run.id,
            created=time.time(),
            command=run.record.command,
            parent=base.number,
            after=None,
            # A rollback restores another one than its base did; other edits copy what that did.
            restores=None if manifest.restores == base.manifest.restores else manifest.restores,
        )
        segments = _require_own(folder, manifest)
        if folder.write_new(manifest_name(newest + 1), manifest.to_json(), run.id):
            break
    run.beat()  # as above
    _require_own(folder, manifest)
    carry_audits(folder, newest + 1, manifest)
    return _settle(folder, Generation(newest + 1, manifest, segments, folder), newest + 1, run)


def _newest(folder: Folder) -> int:
    """The highest number that is taken, 0 where none is."""
    return max(_published(folder), default=0)


def _published(folder: Folder) -> list[int]:
    """The generations, oldest first, those too that a listing does not show yet."""
    found = numbers(folder)
    while folder.exists(manifest_name(max(found, default=0) + 1)):
        found.append(max(found, default=0) + 1)
    return found


def _base(folder: Folder) -> Generation:
    """The best generation; CollectionError where there is none."""
    live = open_current(folder)
    if live is None:
        raise CollectionError(
            display_name(folder.url),
            expected="an index",
            found="none",
            do=f"run {build_command(folder)}",
        )
    after = live.manifest.after
    began_with = live.number if live.manifest.is_edit or after is None else after
    return _best(folder, [*_rivals(folder, live, began_with), live])


def _without_deleted(
    folder: Folder, new: Generation, now: Generation, began_with: int, run: Run
) -> Manifest:
    """The manifest of a build without what was deleted since it began."""
    if now.number == began_with:
        return new.manifest
    began = None
    with suppress(CollectionError):  # swept: then all that is deleted now stays so
        began = open_generation(folder, began_with) if began_with else None
    return carried_over(folder, run.id, new, now, began)


def _settle(folder: Folder, new: Generation, began_with: int, run: Run) -> int:
    """Point CURRENT at the best generation, until a look finds it there."""
    while True:
        candidates = _rivals(folder, new, began_with)
        if new.number and folder.exists(manifest_name(new.number)):
            candidates.append(new)  # not swept, as that of a build that stood still for too long
        live = live_number(folder)
        if not candidates:
            return live
        best = _best(folder, candidates)
        content = f"{best.number:06d}\n".encode() + best.manifest.to_json()
        # The number of a manifest that was lost is given again.
        if live == best.number and read_if_there(folder, CURRENT) == content:
            return live
        if live and live != best.number:
            # It ceases to be live now, whatever a sweep has noted before it was.
            folder.remove(replaced_name(live))
        folder.write_whole(CURRENT, content, run.id)


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
    for number in _published(folder):
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
    """The last, since each was published as better than all before it. One that is not published
    yet, of number 0, is better than that one unless more of its shards are stale.

    Those that are published are not compared once more: which shards are stale may have changed
    since, and an edit would be made upon a generation that another has replaced.
    """
    last = max(generations, key=lambda one: one.number)
    new = next((one for one in generations if not one.number), last)
    if new is last:
        return last
    shards = EmbeddedShards.list(folder)
    stale = [len(shards.stale(one.indexed_shards())) for one in (last, new)]
    return last if stale[0] < stale[1] else new

"""Edits of the live generation: add, delete, compact, roll back.

Segments never change. An edit writes new ones, or bitmaps of deleted rows, and a manifest that
names them beside what was there; `publish_edit` makes it live, and calls the edit again where
another command was faster. Nothing is trained: plans, projections and centroids stay those of the
build. Killed at any moment, the generation before the edit or the one after it is live.

A row that was deleted stays so through `add`, `compact` and later edits; a build, which reads all
embeddings, brings it back, and so does a shard that is embedded anew with other rows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from chiasm.index.build.add import Addition
from chiasm.index.build.build import Progress
from chiasm.index.build.compact import Compaction
from chiasm.index.build.select_rows import Selection
from chiasm.index.plan import IndexSettings
from chiasm.index.segments import (
    Drift,
    Generation,
    Manifest,
    numbers,
    open_whole,
    publish_edit,
    read_manifest,
    remove_unnamed,
    rows_of_shards,
    sweep_published,
    sweeping,
    with_deleted,
)
from chiasm.pipeline.collection import Collection, Run
from chiasm.pipeline.errors import CollectionError, UsageError
from chiasm.pipeline.storage import display_name

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class EditSummary:
    """What an edit made. generation: the number now live. rows: that can be found in what the edit
    made, deleted: that cannot, segments: how many there are. counts: what the edit did. changed:
    whether there was anything to do. drift: by column, of rows added since the build. damaged: the
    shards that could not be added because they cannot be read, and why."""

    generation: int
    rows: int
    deleted: int
    segments: int
    counts: dict[str, int]
    changed: bool
    drift: dict[str, Drift] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)


class Edit(Protocol):
    """Makes the manifest of an edit of a generation, None where there is nothing to change. counts:
    what it did, of the last call."""

    counts: dict[str, int]

    def __call__(self, base: Generation) -> Manifest | None: ...


def add_to_index(
    path: str | Path,
    *,
    settings: IndexSettings | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> EditSummary:
    """Bring the live index up to the embeddings: rows of new and changed shards are added, those of
    changed and vanished ones are left out. Shards whose file is damaged are left as they are in the
    index, see `EditSummary.damaged`.

    Raises CollectionError where there is no index, or one of another encoder.
    """
    settings = settings or IndexSettings()
    return _edit(
        path,
        "index add",
        settings,
        lambda collection, run: Addition(collection, run, settings, progress),
    )


def delete_from_index(
    path: str | Path,
    select: Callable[[Generation], Selection],
    *,
    settings: IndexSettings | None = None,
) -> EditSummary:
    """Leave rows out of every answer. select: gives the rows of a generation.

    Raises CollectionError where there is no index, and where no row is found.
    """
    return _edit(
        path,
        "index delete",
        settings or IndexSettings(),
        lambda collection, run: Deletion(collection, run, select),
    )


def compact_index(
    path: str | Path,
    *,
    settings: IndexSettings | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> EditSummary:
    """Write segments anew of which many rows are deleted, and small ones as one; answers stay."""
    settings = settings or IndexSettings()
    return _edit(
        path,
        "index compact",
        settings,
        lambda collection, run: Compaction(collection, run, settings, progress),
    )


def roll_back_index(
    path: str | Path, to: int | None = None, *, settings: IndexSettings | None = None
) -> EditSummary:
    """Make an earlier generation live again, deletions and all, under a new number. to: its number,
    None for the one that the live rows were made of: which an edit changed, or was there before a
    build.

    Raises UsageError where there is no such generation, CollectionError where it is not whole.
    """
    return _edit(
        path,
        "index rollback",
        settings or IndexSettings(),
        lambda collection, run: Rollback(collection, to),
    )


def _edit(
    path: str | Path,
    command: str,
    settings: IndexSettings,
    make: Callable[[Collection, Run], Edit],
) -> EditSummary:
    """Run a command that edits: publish what it makes, and sweep."""
    collection = Collection.open(str(path))
    folder, record = collection.folder, asdict(settings)
    with (
        Run(folder, command, record, make_room=partial(remove_unnamed, folder)) as run,
        sweeping(run, settings, make_room=False),
    ):
        edit = make(collection, run)
        made: list[Manifest | None] = []
        bases: list[Manifest] = []

        def edit_checked(base: Generation) -> Manifest | None:
            _require_same_encoder(collection, base)
            bases.append(base.manifest)
            made.append(edit(base))
            return made[-1]

        number = publish_edit(folder, run, edit_checked)
        sweep_published(folder, run, settings)
        manifest = made[-1] or bases[-1]
        summary = EditSummary(
            generation=number,
            rows=manifest.rows,
            deleted=manifest.deleted,
            segments=len(manifest.segments),
            counts=edit.counts,
            changed=made[-1] is not None,
            drift=manifest.drift,
            damaged=edit.damaged if isinstance(edit, Addition) else {},
        )
        run.finish("done", asdict(summary))
    return summary


def _require_same_encoder(collection: Collection, base: Generation) -> None:
    manifest, identity = base.manifest, collection.identity
    if (manifest.fingerprint, manifest.dim) != (identity.fingerprint, identity.dim):
        raise CollectionError(
            display_name(collection.folder.url),
            expected=f"an index of encoder {identity.encoder} ({identity.fingerprint[:12]})",
            found=f"one of {manifest.encoder} ({manifest.fingerprint[:12]}), width {manifest.dim}",
            do="run chiasm index build",
        )


class Deletion:
    """Leaves rows out. counts: how many were deleted, how many were before, and how many of the
    names that select them no row has."""

    def __init__(
        self, collection: Collection, run: Run, select: Callable[[Generation], Selection]
    ) -> None:
        self.folder, self.run, self.select = collection.folder, run, select
        self.counts: dict[str, int] = {}

    def __call__(self, base: Generation) -> Manifest | None:
        selection = self.select(base)
        masks: list[np.ndarray | None] = []
        missing = set(selection.names)
        new = before = shards = 0
        for entry, segment in zip(base.manifest.segments, base.segments, strict=True):
            mask = selection.rows(segment)
            for shard, rows in rows_of_shards(segment):
                if shard.shard in entry.retired:
                    mask[rows] = False
                shards += bool(mask[rows].any())
            deleted = segment.deleted()
            again = 0 if deleted is None else int(np.count_nonzero(mask & deleted))
            before += again
            new += int(np.count_nonzero(mask)) - again
            missing -= selection.names_of(segment, mask)
            masks.append(mask if mask.any() else None)
        if not new and not before:
            raise CollectionError(
                f"the index of {display_name(self.folder.url)}",
                expected=f"rows of {selection}",
                found=f"none among {base.manifest.rows:,} rows",
            )
        self.counts = {
            "deleted": new,
            "deleted_before": before,
            "shards": shards,
            "missing": len(missing),
        }
        return with_deleted(self.folder, self.run.id, base, masks) if new else None


class Rollback:
    """Makes an earlier generation live again. counts: its number."""

    def __init__(self, collection: Collection, to: int | None) -> None:
        self.folder, self.to = collection.folder, to
        self.counts: dict[str, int] = {}

    def __call__(self, base: Generation) -> Manifest | None:
        live = (base.number, base.manifest.restores)
        if self.to is not None and self.to in live:  # it may be swept by now
            self.counts = {"restored": self.to}
            return None
        target = self._before(base) if self.to is None else self._generation(self.to)
        self.counts = {"restored": target.number}
        mine, its = base.manifest, target.manifest
        if (its.fingerprint, its.dim) != (mine.fingerprint, mine.dim):
            raise CollectionError(
                f"generation {target.number}",
                expected=f"an index of encoder {mine.encoder} ({mine.fingerprint[:12]})",
                found=f"one of {its.encoder} ({its.fingerprint[:12]}), width {its.dim}",
            )
        return replace(its, restores=target.number)

    def _before(self, base: Generation) -> Generation:
        """What the live rows were made of: of an edit the generation that it changed, of a build
        the newest before it. A rollback has the rows of the one that it restored, so that several
        of them go back further and further, whatever was undone in between."""
        number, manifest = base.number, base.manifest
        while (restored := manifest.restores) and restored < number:
            number = restored
            try:
                manifest = read_manifest(self.folder, number)
            except CollectionError as error:
                LOG.info("generation %d is not known any more: %s", number, error)
                return self._newest_before(number)
        # One that is not whole any more is passed over.
        parent = manifest.parent
        return self._newest_before(number if parent is None else parent + 1)

    def _newest_before(self, number: int) -> Generation:
        for earlier in reversed(numbers(self.folder)):
            if earlier < number:
                try:
                    return open_whole(self.folder, earlier)
                except CollectionError as error:
                    LOG.info("generation %d is passed over: %s", earlier, error)
        raise CollectionError(
            f"the index of {display_name(self.folder.url)}",
            expected=f"a whole generation before {number}",
            found="none",
        )

    def _generation(self, number: int) -> Generation:
        existing = numbers(self.folder)
        if number not in existing:
            raise UsageError(
                f"generation {number}",
                expected="one of " + ", ".join(map(str, existing)),
                found="none of that number",
            )
        return open_whole(self.folder, number)

"""Opening a collection for searching: which generation answers, and whether it may.

In a store everything that is read first is requested at once: the identity, CURRENT, which carries
the manifest, the list of the embeddings and the record of relocated shards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from chiasm.index.query.resident import Resident
from chiasm.index.query.scan import ColumnIndex
from chiasm.index.segments import (
    EmbeddedShards,
    Generation,
    build_command,
    open_current,
    stale_advice,
)
from chiasm.pipeline.collection import Collection, Relocations, read_relocations, stat_relocations
from chiasm.pipeline.errors import CollectionError, StaleIndexError
from chiasm.pipeline.storage import Folder, Stat, display_name


def open_live(
    path: str, allow_stale: bool, encoder: str | None = None
) -> tuple[Collection, Generation, tuple[Stat | None, Relocations]]:
    """A collection, the generation to search, and where its shards are now; in a store by requests
    that wait for each other as little as can be. Raises as `live_generation` does."""
    folder = Folder(path)
    calls: list[Callable[[], Any]] = [
        lambda: Collection.of(folder, path, encoder),
        lambda: open_current(folder),
        lambda: read_relocated(folder, stat_relocations(folder)),
        lambda: None if allow_stale else EmbeddedShards.list(folder),
    ]
    collection, found, relocated, shards = folder.map_concurrent(lambda call: call(), calls)
    return collection, _checked(collection, found, shards), relocated


def read_relocated(folder: Folder, found: Stat | None) -> tuple[Stat | None, Relocations]:
    """The record of relocated shards with what tells whether it has changed since."""
    return found, Relocations() if found is None else read_relocations(folder)


def live_generation(
    collection: Collection, allow_stale: bool, known: Generation | None = None
) -> Generation:
    """The generation to search; raises CollectionError where there is none, StaleIndexError. known:
    one that is open, whose segments are not opened again."""
    generation = open_current(collection.folder, known)
    shards = None if allow_stale else EmbeddedShards.list(collection.folder)
    return _checked(collection, generation, shards)


def _checked(
    collection: Collection, generation: Generation | None, shards: EmbeddedShards | None
) -> Generation:
    """The generation, if it is the collection's. shards: as they are now, of which it has to know
    all, None where it need not."""
    path, command = display_name(collection.folder.url), build_command(collection.folder)
    if generation is None:
        raise CollectionError(path, expected="an index", found="none", do=f"run {command}")
    manifest, identity = generation.manifest, collection.identity
    if (manifest.fingerprint, manifest.dim) != (identity.fingerprint, identity.dim):
        raise CollectionError(
            path,
            expected=f"an index of encoder {identity.encoder} ({identity.fingerprint[:12]})",
            found=f"one of {manifest.encoder} ({manifest.fingerprint[:12]}), width {manifest.dim}",
            do=f"run {command}",
        )
    if shards is not None:
        _require_fresh(shards, generation)
    return generation


def _require_fresh(shards: EmbeddedShards, generation: Generation) -> None:
    """Raises StaleIndexError where shards were added, changed or removed since the build."""
    folder = shards.folder
    counts = Counter(shards.stale(generation.indexed_shards()).values())
    if counts:
        stale = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
        raise StaleIndexError(
            display_name(folder.url),
            expected="an index of the embeddings beside it",
            found=f"an older one (shards: {stale})",
            do=stale_advice(folder, counts),
        )


def column_of(generation: Generation, name: str, known: Generation | None = None) -> ColumnIndex:
    """A column of a generation that has it; two threads may both open it, to the same end. known:
    a generation that has it open."""
    if name not in generation.opened:
        manifest = generation.manifest
        plan, shared = manifest.columns[name], manifest.trained.get(name)
        residents: Sequence[Resident] = ()
        if known is not None and known.manifest.trained.get(name) == shared:
            before: ColumnIndex = known.opened[name]
            trained, residents = before.trained, before.merged or ()
        else:
            trained = generation.load(name)
        index = ColumnIndex(generation.segments, name, plan, trained, residents)
        generation.opened[name] = index
    return generation.opened[name]


def open_all(index: ColumnIndex) -> None:
    """What searches of a column and their results need, so that no file of it can go."""
    index.open()
    for segment in index.segments:
        if not segment.in_store:
            segment.keep_open(index.column)

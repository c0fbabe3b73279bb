"""The current ledger entry of a shard: the one that agrees with the rows as they are.

An entry is written before its rows. Where a shard that has whole rows is embedded anew, the new
entry carries theirs as `replaced`. So a kill or a full disk between the two writes costs nothing:
the rows that are there still have an entry that agrees with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from chiasm.pipeline.collection.embeddings import read_footer, stored_parquet_name
from chiasm.pipeline.collection.ledger import LedgerEntry, entry_ids, read_entry
from chiasm.pipeline.errors import CollectionError
from chiasm.pipeline.storage import Folder


def current_entry(folder: Folder, shard_id: str) -> LedgerEntry | None:
    """The entry of a shard, or the one that it replaces where the rows are still of that; None
    where there is no entry. Raises CollectionError for a damaged one."""
    entry = read_entry(folder, shard_id)
    if entry is None or entry.replaced is None or not _has_rows(folder, shard_id):
        return entry
    try:
        return read_footer(folder, shard_id).agreeing(entry) or entry
    except CollectionError:
        return entry


def entry_to_replace(folder: Folder, shard_id: str) -> LedgerEntry | None:
    """The current entry of a shard's whole rows, for the entry that is to replace it; None where no
    rows are there, or they are damaged."""
    if not _has_rows(folder, shard_id):  # first: it is one request where nothing is there
        return None
    try:
        current = read_footer(folder, shard_id).agreeing(read_entry(folder, shard_id))
    except CollectionError:
        return None
    return None if current is None else replace(current, replaced=None)


def _has_rows(folder: Folder, shard_id: str) -> bool:
    return folder.exists(stored_parquet_name(folder, shard_id))


def entries(folder: Folder) -> Iterator[LedgerEntry]:
    """The current entry of every shard of a collection, by shard id."""
    for entry in folder.map_concurrent(lambda name: current_entry(folder, name), entry_ids(folder)):
        if entry is not None:
            yield entry


def own_entries(folder: Folder) -> dict[str, LedgerEntry]:
    """By shard id, every current entry but copies under other names."""
    shard_ids = entry_ids(folder)
    found = folder.map_concurrent(lambda shard_id: current_entry(folder, shard_id), shard_ids)
    return {
        shard_id: entry
        for shard_id, entry in zip(shard_ids, found, strict=True)
        if entry is not None and entry.source.id == shard_id
    }

"""Which shards an index does not cover as they are now."""

from __future__ import annotations

from chiasm.index.segments.catalog import IndexedShard
from chiasm.pipeline.collection import embedded_shard_ids, file_version, find_embedding
from chiasm.pipeline.errors import CollectionError
from chiasm.pipeline.storage import Folder


def stale_shards(folder: Folder, indexed: dict[str, IndexedShard]) -> dict[str, str]:
    """Where `embeddings/` differs from what was indexed: shard id -> new, changed, damaged or gone.

    One listing and a stat a shard; only files that have changed have their footers read.
    """
    stale: dict[str, str] = {}
    shard_ids = embedded_shard_ids(folder)
    versions = folder.map_concurrent(lambda shard_id: file_version(folder, shard_id), shard_ids)
    for shard_id, version in zip(shard_ids, versions, strict=True):
        known = indexed.get(shard_id)
        if known is not None and version == known.file:
            continue
        try:
            embedding = find_embedding(folder, shard_id)
        except CollectionError:
            stale[shard_id] = "damaged"
            continue
        if embedding is None and known is None:
            continue  # a shard that is not done yet
        if known is None:
            stale[shard_id] = "new"
        elif embedding is None or (embedding.edition, embedding.rows) != (
            known.edition,
            known.rows,
        ):
            stale[shard_id] = "changed"
    stale.update(dict.fromkeys(indexed.keys() - set(shard_ids), "gone"))
    return stale

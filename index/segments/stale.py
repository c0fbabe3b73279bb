"""Which shards an index does not cover as they are now."""

from __future__ import annotations

from dataclasses import dataclass, field

from chiasm.index.segments import verified
from chiasm.index.segments.catalog import IndexedShard
from chiasm.pipeline.collection import EmbeddingFile, find_embedding, parquet_name, shard_id_of
from chiasm.pipeline.errors import CollectionError
from chiasm.pipeline.storage import Folder, Stat


@dataclass
class EmbeddedShards:
    """The Parquet files of a collection at one moment, by shard id. A footer is read once, however
    many generations are compared."""

    folder: Folder
    stats: dict[str, Stat]
    _footers: dict[str, EmbeddingFile | CollectionError | None] = field(default_factory=dict)

    @classmethod
    def list(cls, folder: Folder) -> EmbeddedShards:
        """By one listing."""
        stats: dict[str, Stat] = {}
        for name, stat in folder.list_stats("embeddings").items():
            shard_id = shard_id_of(name)
            # A shard may have a file of an earlier name as well, which does not count then.
            if shard_id and (shard_id not in stats or name == parquet_name(shard_id)):
                stats[shard_id] = stat
        return cls(folder, dict(sorted(stats.items())))

    def stale(self, indexed: dict[str, IndexedShard]) -> dict[str, str]:
        """Where they differ from what was indexed: shard id -> new, changed, damaged or gone. Only
        files that have changed have their footers read; that none of them differs is remembered,
        since a copy of a collection has other times in all of them."""
        changed = [
            shard_id
            for shard_id, stat in self.stats.items()
            if shard_id not in indexed or (stat.size, stat.version) != indexed[shard_id].file
        ]
        gone = dict.fromkeys(indexed.keys() - self.stats.keys(), "gone")
        name = verified.name_of(self.folder.url, *self.stats.items(), *sorted(indexed.items()))
        if changed and not gone and verified.is_remembered(name):
            return {}
        missing = [shard_id for shard_id in changed if shard_id not in self._footers]
        footers = self.folder.map_concurrent(self._read_footer, missing)
        self._footers.update(zip(missing, footers, strict=True))
        states = {shard_id: self._state(shard_id, indexed.get(shard_id)) for shard_id in changed}
        stale = {shard_id: state for shard_id, state in (states | gone).items() if state}
        if changed and not stale:
            verified.remember(name)
        return stale

    def damage(self, shard_id: str) -> str:
        """Why a shard that `stale` called damaged cannot be read, and what to do."""
        return str(self._footers[shard_id])

    def _read_footer(self, shard_id: str) -> EmbeddingFile | CollectionError | None:
        try:
            return find_embedding(self.folder, shard_id)
        except CollectionError as error:
            return error

    def _state(self, shard_id: str, known: IndexedShard | None) -> str:
        embedding = self._footers[shard_id]
        if isinstance(embedding, CollectionError):
            return "damaged"
        if known is None:
            return "" if embedding is None else "new"  # None: a shard that is not done yet
        same = embedding is not None and (embedding.edition, embedding.rows) == (
            known.edition,
            known.file_rows,
        )
        return "" if same else "changed"


def stale_shards(folder: Folder, indexed: dict[str, IndexedShard]) -> dict[str, str]:
    """Where `embeddings/` differs from what was indexed: shard id -> new, changed, damaged or
    gone."""
    return EmbeddedShards.list(folder).stale(indexed)

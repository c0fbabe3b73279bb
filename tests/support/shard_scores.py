"""A shard's match scores as a list."""

from __future__ import annotations

from chiasm.pipeline.batches import BatchSettings
from chiasm.pipeline.caption_filter import Scored, read_scores, store_scores
from chiasm.pipeline.encoders import Matcher
from chiasm.pipeline.images import DecodeSettings
from chiasm.pipeline.records import Shard
from chiasm.pipeline.shards import ReadSettings
from chiasm.pipeline.storage import Folder


def score_shard(
    shard: Shard,
    encoder: Matcher,
    read: ReadSettings,
    folder: Folder,
    run_id: str,
    *,
    decode: DecodeSettings | None = None,
    batch: BatchSettings | None = None,
) -> list[Scored]:
    """Scores of every sample with picture and caption: worked out and written to the folder, or
    read from there where this shard was scored so before."""
    store_scores(shard, encoder, read, folder, run_id, batch=batch, decode=decode)
    return list(read_scores(shard, folder))

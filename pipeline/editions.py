"""What makes two embeddings of a shard the same rows: settings, and the edition they give."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field

from chiasm.pipeline.batches import BatchSettings
from chiasm.pipeline.images import DecodeSettings
from chiasm.pipeline.records import Shard
from chiasm.pipeline.shards import ReadSettings


@dataclass(frozen=True)
class EmbedSettings:
    """How shards are read, decoded and batched."""

    read: ReadSettings = field(default_factory=ReadSettings)
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    batch: BatchSettings = field(default_factory=BatchSettings)


def edition_of(
    shard: Shard, fingerprint: str, settings: EmbedSettings, limit: int | None = None
) -> str:
    """Which making of a shard's rows this is: 8 hex digits over what decides which rows there are
    and what they mean. The same shard embedded again the same way is the same edition; a changed
    one, or one read otherwise, is a new one. Batch size and threads decide neither, so they are
    left out."""
    identity = {
        "size": shard.size,
        "version": shard.version,
        "fingerprint": fingerprint,
        "read": asdict(settings.read),
        "decode": asdict(settings.decode),
        "limit": limit,
    }
    digest = hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=4)
    return digest.hexdigest()

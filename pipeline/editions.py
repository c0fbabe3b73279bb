"""What makes two embeddings of a shard the same rows: settings, and the edition they give."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field

from chiasm.pipeline.batches import BatchSettings
from chiasm.pipeline.images import DecodeSettings
from chiasm.pipeline.records import Shard
from chiasm.pipeline.shards import RULES, ReadSettings


@dataclass(frozen=True)
class EmbedSettings:
    """How shards are read, decoded and batched."""

    read: ReadSettings = field(default_factory=ReadSettings)
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    batch: BatchSettings = field(default_factory=BatchSettings)


def edition_of(
    shard: Shard,
    fingerprint: str,
    settings: EmbedSettings,
    limit: int | None = None,
    *,
    rules: int = 1,
) -> str:
    """Which making of a shard's rows this is: 8 hex digits over what decides which rows there are
    and what they mean. The same shard embedded again the same way is the same edition; a changed
    one, or one read otherwise, is a new one. Batch size and threads decide neither, so they are
    left out. rules: the version of the rules of reading, today RULES."""
    identity = {
        "size": shard.size,
        "version": shard.version,
        "fingerprint": fingerprint,
        "read": asdict(settings.read),
        "decode": asdict(settings.decode),
        "limit": limit,
    }
    if rules > 1:  # which was added with the second
        identity["rules"] = rules
    digest = hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=4)
    return digest.hexdigest()


def accepted_editions(
    shard: Shard,
    fingerprint: str,
    settings: EmbedSettings,
    limit: int | None = None,
    *,
    reembed: bool = False,
) -> set[str]:
    """The editions that count as this shard embedded: the whole of it, or with `limit`, by today's
    rules of reading and, but for `reembed`, by earlier ones: nobody's rows are made anew unasked.
    """
    accepted = [RULES] if reembed else range(1, RULES + 1)
    return {
        edition_of(shard, fingerprint, settings, most, rules=rules)
        for rules in accepted
        for most in {None, limit}
    }

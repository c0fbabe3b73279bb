"""What makes two embeddings of a shard the same rows: settings, and the edition they give."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from chiasm.pipeline.batches import BatchSettings
from chiasm.pipeline.images import DECODING, DecodeSettings
from chiasm.pipeline.records import Shard
from chiasm.pipeline.shards import RULES, ReadSettings
from chiasm.pipeline.sounds import SoundSettings


@dataclass(frozen=True)
class EmbedSettings:
    """How shards are read, decoded and batched."""

    read: ReadSettings = field(default_factory=ReadSettings)
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    batch: BatchSettings = field(default_factory=BatchSettings)
    sound: SoundSettings = field(default_factory=SoundSettings)


def edition_of(
    shard: Shard,
    fingerprint: str,
    settings: EmbedSettings,
    limit: int | None = None,
    *,
    rules: int = 1,
    decoding: int = 1,
) -> str:
    """Which making of a shard's rows this is: 8 hex digits over what decides which rows there are
    and what they mean. The same shard embedded again the same way is the same edition; a changed
    one, or one read otherwise, is a new one. Batch size and threads decide neither, so they are
    left out. rules: the version of the rules of reading, today RULES. decoding: that of the way
    from bytes to pixels, today DECODING."""
    decode: dict[str, Any] = asdict(settings.decode)
    if decoding == 1:
        del decode["exact"]  # which was added with the second
    identity: dict[str, Any] = {
        "size": shard.size,
        "version": shard.version,
        "fingerprint": fingerprint,
        "read": asdict(settings.read),
        "decode": decode,
        "limit": limit,
    }
    if settings.sound != SoundSettings():  # which was added later
        identity["sound"] = asdict(settings.sound)
    # A first version has no number in it: editions were stored before there was a second.
    identity |= {"rules": rules} if rules > 1 else {}
    identity |= {"decoding": decoding} if decoding > 1 else {}
    digest = hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=4)
    return digest.hexdigest()


def accepted_editions(
    shard: Shard,
    fingerprint: str,
    settings: EmbedSettings,
    limit: int | None = None,
    *,
    reembed: bool = False,
) -> Iterator[str]:
    """The editions that count as this shard embedded, today's first: the whole of it, or with
    `limit`, by today's rules of reading and way of decoding and, but for `reembed`, by earlier
    ones: nobody's rows are made anew unasked.
    """
    ways = [Way(settings.decode, DECODING, RULES, settings.sound)] if reembed else ways_of(settings)
    for way in ways:
        for most in {None, limit}:
            yield way.edition(shard, fingerprint, settings, most)


@dataclass(frozen=True, slots=True)
class Way:
    """How rows were made: by which settings and version of decoding, and which rules of reading."""

    decode: DecodeSettings
    decoding: int
    rules: int
    sound: SoundSettings

    def edition(
        self, shard: Shard, fingerprint: str, settings: EmbedSettings, limit: int | None = None
    ) -> str:
        """The edition of rows that were made this way; `settings` but for decoding."""
        settings = replace(settings, decode=self.decode)
        return edition_of(
            shard, fingerprint, settings, limit, rules=self.rules, decoding=self.decoding
        )


def ways_of(settings: EmbedSettings) -> Iterator[Way]:
    """Today's way, then earlier ones by which the same was made. In the first way of decoding
    pictures were scaled unless somebody asked for all of them."""
    decode = settings.decode
    first = [replace(decode, scaled=scaled, exact=False) for scaled in (True, False)]
    for rules in range(RULES, 0, -1):
        yield Way(decode, DECODING, rules, settings.sound)
        for earlier in first:
            yield Way(earlier, 1, rules, settings.sound)

"""One member of a shard read again, by its place."""

from __future__ import annotations

import hashlib

from chiasm.pipeline.errors import SourceError
from chiasm.pipeline.records import Place
from chiasm.pipeline.shards.tar import Damaged, Tar
from chiasm.pipeline.storage import display_name, read_range


def read_member(shard_url: str, place: Place) -> bytes:
    """A member's bytes: by one range read or, in a compressed shard, by streaming up to it.

    Raises SourceError when it is missing."""
    if place.offset is not None:
        return read_range(shard_url, place.offset, place.size)
    try:
        with Tar(shard_url) as tar:
            for member in tar:
                if member.name == place.member and member.size == place.size:
                    return member.read()
        found = "no such member"
    except Damaged as damage:
        found = f"a shard that is {damage.reason} before it"
    raise SourceError(display_name(shard_url), expected=f"the member {place.member}", found=found)


def read_checked(shard_url: str, place: Place, sha256: str | None) -> bytes:
    """A member's bytes, after comparing their SHA-256 with that of the embedded ones.

    Raises SourceError for a shard that is missing or has changed."""
    data = read_member(shard_url, place)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise SourceError(
            display_name(shard_url),
            expected=f"the bytes of {place.member} that were embedded",
            found="others",
            do="the shard has changed: run chiasm embed and chiasm index build again",
        )
    return data

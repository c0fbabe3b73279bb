"""Members of a shard: how their names are split, and reading one again by its offset."""

from __future__ import annotations

import hashlib
import re

from chiasm.pipeline.errors import SourceError
from chiasm.pipeline.records import Place
from chiasm.pipeline.shards.tar import Damaged, Tar
from chiasm.pipeline.storage import display_name, read_range

_KEY_AND_EXTENSION = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)$")


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


def split_member_name(name: str) -> tuple[str, str] | None:
    """A member's name -> (key, extension in lower case), as webdataset's `base_plus_ext` has it:
    the key ends at the first dot of the base name. None for a name without extension, and for those
    that webdataset skips (`__meta__`, and all in a folder so called)."""
    if name.startswith("__") and re.match(r"__[^/]*__($|/)", name):
        return None
    found = _KEY_AND_EXTENSION.match(name)
    return (found[1], found[2].lower()) if found else None

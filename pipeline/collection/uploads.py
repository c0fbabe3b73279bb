"""Whose an unfinished multipart upload below a collection is.

Listings do not show such uploads, bills do, so runs abort those of dead runs. But the prefix of a
collection may be part of a bucket that other programs upload to as well. Aborted is only what has a
name that chiasm gives, of a run or a shard that is known here: other names may look alike.
"""

from __future__ import annotations

import re
from collections.abc import Set

from chiasm.pipeline.storage import RUN_ID

_SHARD = r"[A-Za-z0-9._-]+-[0-9a-f]{10}"
_BASE = r"[a-z][a-z0-9_]*"

# Names whose group is the id of the run that writes them, or of a shard that it has claimed. A
# generation and the identity carry no such id, so uploads of them are left; they are small.
_OWNED = re.compile(
    rf"embeddings/(?:s~)?({_SHARD})\.parquet"
    rf"|ledger/({_SHARD})\.json"
    rf"|runs/({RUN_ID})\.json"
    rf"|summaries/({RUN_ID})-[0-9]+\.json"
    rf"|index/segments/({RUN_ID})-[0-9]+/{_BASE}\.(?:arrow|faiss|f16|json)"
    rf"|index/trained/({RUN_ID})/{_BASE}\.faiss"
)
# Of `chiasm filter` and of answers about shards, whose runs claim no shards.
_UNCLAIMED = re.compile(
    rf"({_SHARD})\.(?:tar|scores\.jsonl)"
    rf"|shards/({_SHARD})\.tar"
    rf"|answers/(?:s~)?({_SHARD})\.parquet"
)


def owner_of_upload(name: str) -> str | None:
    """The id of the run, or of the shard, whose file `name` is; None for a file of nobody's."""
    found = _OWNED.fullmatch(name)
    return None if found is None else found[found.lastindex or 0]


def unclaimed_shard(name: str) -> str | None:
    """The id of the shard of which a run that claims none (`chiasm filter`, `caption` and its kin)
    writes the file `name`."""
    found = _UNCLAIMED.fullmatch(name)
    return None if found is None else found[found.lastindex or 0]


def is_dead_upload(name: str, known: Set[str], living: Set[str]) -> bool:
    """Whether an unfinished upload of the file `name` was left by a run that is dead.

    known: ids of runs of this collection, and of shards that they have embedded or claimed. living:
    ids of the runs that live, and of the shards that they have claimed."""
    owner = owner_of_upload(name)
    return owner is not None and owner in known and owner not in living

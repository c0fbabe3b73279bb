"""Whose an unfinished multipart upload below a collection is.

Listings do not show such uploads, bills do, so runs abort those of dead runs. But the prefix of a
collection may be part of a bucket that other programs upload to as well. Aborted is only what has a
name that chiasm gives, and whose owner can be told from that name.
"""

from __future__ import annotations

import re

_SHARD = r"[A-Za-z0-9._-]+-[0-9a-f]{10}"
_RUN = r"[0-9]{8}T[0-9]{6}-[0-9a-f]{8}"
_BASE = r"[a-z][a-z0-9_]*"

# Names whose group is the id of the run that writes them, or of a shard that it has claimed. A
# generation and the identity carry no such id, so uploads of them are left; they are small.
_OWNED = re.compile(
    rf"embeddings/({_SHARD})\.parquet"
    rf"|ledger/({_SHARD})\.json"
    rf"|runs/({_RUN})\.json"
    rf"|summaries/({_RUN})-[0-9]+\.json"
    rf"|index/segments/({_RUN})-[0-9]+/{_BASE}\.(?:arrow|faiss|f16|json)"
    rf"|index/trained/({_RUN})/{_BASE}\.faiss"
)
# Of `chiasm filter`, which claims no shards: any run that lives may be writing them.
_UNCLAIMED = re.compile(rf"{_SHARD}\.(tar|scores\.jsonl)")


def is_dead_upload(name: str, others: set[str], mine: set[str], *, of_filter: bool = False) -> bool:
    """Whether an unfinished upload of the file `name` was left by a run that is dead.

    others, mine: ids of the other runs that live, and of this one where it still writes, each with
    the shards that it has claimed. of_filter: whether `chiasm filter` asks, which alone writes
    shards into its folder."""
    if _UNCLAIMED.fullmatch(name):
        return of_filter and not others
    owned = _OWNED.fullmatch(name)
    return owned is not None and owned[owned.lastindex or 0] not in others | mine

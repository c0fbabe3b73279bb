"""Writes samples to a shard."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from chiasm.pipeline.records import Shard
from chiasm.pipeline.shards.listing import stat_shard
from chiasm.pipeline.shards.names import split_member_name
from chiasm.pipeline.storage import Folder, canonical_url


def write_shard(path: str | Path, samples: Iterable[Mapping[str, Any]]) -> Shard:
    """Write an uncompressed shard atomically; the same samples give the same bytes.

    A sample is webdataset's: `__key__`, and extension -> bytes, text, or for json any JSON value.
    Raises ValueError for a key that would be read back as another."""
    # webdataset imports torch, which takes two seconds that reading shards does not need.
    from webdataset.writer import TarWriter

    path = Path(path)
    with Folder(str(path.parent)).create(path.name, run_id="") as file:
        target: Any = file
        with TarWriter(target, compress=False, mtime=0) as writer:
            for sample in samples:
                key = sample["__key__"]
                if split_member_name(f"{key}.x") != (key, "x"):
                    raise ValueError(f"key {key!r}: expected no dot in its last part, and no __x__")
                writer.write(dict(sample))
        file.commit()
    return stat_shard(canonical_url(str(path)))

"""What `chiasm check` verifies of shards and rows."""

from chiasm.pipeline.verify.embeddings import check_shards
from chiasm.pipeline.verify.findings import Finding
from chiasm.pipeline.verify.reencode import MIN_COSINE, check_members
from chiasm.pipeline.verify.sources import SourcesSeen, difference, look_at_sources

__all__ = [
    "MIN_COSINE",
    "Finding",
    "SourcesSeen",
    "check_members",
    "check_shards",
    "difference",
    "look_at_sources",
]

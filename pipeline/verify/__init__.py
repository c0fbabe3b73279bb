"""What `chiasm check` verifies of shards and rows."""

from chiasm.pipeline.verify.embeddings import Finding, check_shards
from chiasm.pipeline.verify.reencode import MIN_COSINE, check_members

__all__ = ["MIN_COSINE", "Finding", "check_members", "check_shards"]

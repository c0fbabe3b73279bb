"""What `chiasm check` verifies of shards and rows."""

from chiasm.pipeline.verify.embeddings import Finding, check_shards
from chiasm.pipeline.verify.reencode import check_pictures

__all__ = ["Finding", "check_pictures", "check_shards"]

"""What `chiasm check` verifies of shards and rows."""

from chiasm.pipeline.verify.reencode import check_pictures
from chiasm.pipeline.verify.shards import Finding, check_shards

__all__ = ["Finding", "check_pictures", "check_shards"]

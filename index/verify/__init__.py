"""What `chiasm check` verifies of a collection and its index."""

from chiasm.index.verify.collection import Report, check

__all__ = ["Report", "check"]

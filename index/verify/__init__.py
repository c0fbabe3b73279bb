"""What `chiasm check` verifies of a collection and its index."""

from chiasm.index.verify.report import Report, check

__all__ = ["Report", "check"]

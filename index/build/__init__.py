"""Embeddings -> an index: planned, trained, filled, published."""

from chiasm.index.build.build import BuildSummary, build_index

__all__ = ["BuildSummary", "build_index"]

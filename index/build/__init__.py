"""Embeddings -> an index: planned, trained, filled, published."""

from chiasm.index.build.build import Built, build_index

__all__ = ["Built", "build_index"]

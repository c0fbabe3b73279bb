"""Shards -> embeddings. See docs/architecture.md for the rooms and the path of the data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chiasm.pipeline.collection import Collection
    from chiasm.pipeline.editions import EmbedSettings
    from chiasm.pipeline.embed import embed_shard
    from chiasm.pipeline.encoders import load_encoder, register_encoder
    from chiasm.pipeline.make import make_collection
    from chiasm.pipeline.shards import list_shards, read_samples

__all__ = [
    "Collection",
    "EmbedSettings",
    "embed_shard",
    "list_shards",
    "load_encoder",
    "make_collection",
    "read_samples",
    "register_encoder",
]


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from chiasm.pipeline import collection, editions, embed, encoders, make, shards

    rooms = (collection, editions, embed, encoders, make, shards)
    return next(getattr(room, name) for room in rooms if hasattr(room, name))

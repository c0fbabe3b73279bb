"""chiasm: WebDataset shards in, answers out.

    from chiasm import make_collection, build_index, open_collection

In this folder are links to the repository's own: `chiasm.pipeline` (shards -> embeddings),
`chiasm.index` (embeddings -> answers) and `chiasm.jobs` (both, on a cluster and at a prompt). The
names here load what they need when they are asked for: `import chiasm` itself loads nothing, not
even of Python's own modules: `python -m chiasm` imports it while the current folder is still first
on `sys.path`.
"""

TYPE_CHECKING = False  # what type checkers take for that of `typing`
if TYPE_CHECKING:
    from typing import Any

    from chiasm.index import Answer, Query, Result, build_index, open_collection
    from chiasm.pipeline import (
        Collection,
        EmbedSettings,
        embed_shard,
        list_shards,
        load_encoder,
        make_collection,
        read_samples,
        register_encoder,
    )
    from chiasm.pipeline.model import JointModel

__all__ = [
    "Answer",
    "Collection",
    "EmbedSettings",
    "JointModel",
    "Query",
    "Result",
    "build_index",
    "embed_shard",
    "list_shards",
    "load_encoder",
    "make_collection",
    "open_collection",
    "read_samples",
    "register_encoder",
]


def __dir__() -> list[str]:
    return sorted([*__all__, "index", "jobs", "pipeline"])


def __getattr__(name: str) -> "Any":
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "JointModel":
        from chiasm.pipeline.model import JointModel

        return JointModel
    from chiasm import index, pipeline

    return getattr(index if name in index.__all__ else pipeline, name)

"""The joint model: towers, attention, fusion, matching, losses, and how models are saved.

`JointModel` is a module for SentenceTransformer; asking for it loads that library, 6 s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chiasm.pipeline.model.sentence_module import JointModel

__all__ = ["JointModel"]


def __getattr__(name: str) -> Any:
    if name == "JointModel":
        from chiasm.pipeline.model.sentence_module import JointModel

        return JointModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

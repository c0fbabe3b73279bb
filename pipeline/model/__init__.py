"""The joint model: towers, attention, fusion, matching, a decoder, losses, and models on disk.

Its face: `multi_head_attention`, `multimodal_fusion` and `joint_decoder` for plain tensors, which
load torch when they are asked for; and `JointModel`, a module for SentenceTransformer, which loads
that library, 6 s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chiasm.pipeline.model.attention import multi_head_attention
    from chiasm.pipeline.model.plain_tensors import joint_decoder, multimodal_fusion
    from chiasm.pipeline.model.sentence_module import JointModel

__all__ = ["JointModel", "joint_decoder", "multi_head_attention", "multimodal_fusion"]


def __getattr__(name: str) -> Any:
    if name == "JointModel":
        from chiasm.pipeline.model.sentence_module import JointModel

        return JointModel
    if name == "multi_head_attention":
        from chiasm.pipeline.model.attention import multi_head_attention

        return multi_head_attention
    if name in ("multimodal_fusion", "joint_decoder"):
        from chiasm.pipeline.model import plain_tensors

        return getattr(plain_tensors, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""The joint model: towers, attention, fusion, matching, objectives, training, and how they are
saved.

`JointModel` is a module for SentenceTransformer; asking for it loads that library, 6 s.
"""

from __future__ import annotations

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    if name == "JointModel":
        return importlib.import_module("chiasm.pipeline.model.sentence_module").JointModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

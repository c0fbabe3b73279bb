"""What kind of model of sentence-transformers a folder holds, told from its JSON files.

The library loads a model of one kind as another: it puts mean pooling in place of what the model
was trained with, warns, and gives vectors that nobody trained.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SENTENCE_TRANSFORMER = "SentenceTransformer"
CROSS_ENCODER = "CrossEncoder"
MULTI_VECTOR = "MultiVectorEncoder"
SPARSE = "SparseEncoder"
UNKNOWN = ""  # a model of transformers, which no kind was trained of

DESCRIPTIONS = {
    SENTENCE_TRANSFORMER: "a SentenceTransformer, which gives an item one vector",
    CROSS_ENCODER: "a CrossEncoder, which scores pairs and gives no vectors",
    MULTI_VECTOR: "a MultiVectorEncoder, which gives a vector for each token",
    SPARSE: "a SparseEncoder, which weighs words",
}
_PACKAGES = {  # of the classes in modules.json
    "sentence_transformers.multi_vector_encoder.": MULTI_VECTOR,
    "pylate.": MULTI_VECTOR,
    "sentence_transformers.sparse_encoder.": SPARSE,
    "sentence_transformers.cross_encoder.": CROSS_ENCODER,
}


def kind_of(path: Path) -> str:
    """One of the constants above, or another `model_type` of the library."""
    modules = _read(path / "modules.json")
    for name in _classes(modules):
        for package, kind in _PACKAGES.items():
            if name.startswith(package):
                return kind
    stated = _object(path / "config_sentence_transformers.json").get("model_type")
    if isinstance(stated, str):
        return MULTI_VECTOR if stated == "ColBERT" else stated  # which is PyLate's word
    if _gives_token_vectors(path):
        return MULTI_VECTOR
    return UNKNOWN if modules is None else SENTENCE_TRANSFORMER


def _classes(modules: Any) -> Iterator[str]:
    for module in modules if isinstance(modules, list) else []:
        if isinstance(module, dict) and isinstance(module.get("type"), str):
            yield module["type"]


def _gives_token_vectors(path: Path) -> bool:
    """Whether config.json names a late-interaction model: ColPali and its kind of transformers, or
    a ColBERT of Stanford's."""
    named = _object(path / "config.json").get("architectures")
    names = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    return any(name == "HF_ColBERT" or name.endswith("ForRetrieval") for name in names)


def _object(path: Path) -> dict[str, Any]:
    value = _read(path)
    return value if isinstance(value, dict) else {}


def _read(path: Path) -> Any:
    """The JSON of a file; None where it is none, which loading the model then says."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None

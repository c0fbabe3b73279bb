"""What SentenceTransformers and CrossEncoders share: loading, and limits on their inputs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from sentence_transformers.base.modules import Transformer

from chiasm.pipeline.errors import EncoderError
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.pretrained.device_and_precision import (
    PRECISIONS,
    resolve_device,
    resolve_precision,
)
from chiasm.pipeline.pretrained.hub import ModelFolder, find_model, translating_load_errors
from chiasm.pipeline.pretrained.sentence_folders import (
    CROSS_ENCODER,
    DESCRIPTIONS,
    UNKNOWN,
    kind_of,
)
from chiasm.pipeline.resizing import resize

N = TypeVar("N")

WEIGHTS = "*.safetensors"
# A batch of 64 photographs of 12 megapixels is 2.3 GB of pixels; at this limit it is 400 MB. The
# limit is above the 1.8 megapixels that Qwen3-VL-Embedding uses, which is more than most models.
MAX_PIXELS = 2 << 20
PADDED_IN_FULL = ("siglip", "siglip2")  # model types of transformers
PROJECTIONS = ("projection", "embedding_proj", "text_proj", "visual_proj")  # to the vectors' space


def load_network(
    kind: type[N], model: str, settings: EncoderSettings, use: str = "encoder"
) -> tuple[ModelFolder, N, str, torch.device]:
    """A SentenceTransformer or a CrossEncoder of a folder or a hub id -> (its folder, the network,
    its precision, its device); use: what it is called in messages. No code of the model's own is
    run.

    Raises EncoderError or UsageError: for a model of another kind too, and for weights that do not
    fill it."""
    device = resolve_device(settings.device)
    precision = resolve_precision(settings.precision, device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    folder = find_model("st", model, WEIGHTS, nested=True, use=use)
    _require_kind(folder, kind.__name__)
    build: Any = kind
    with translating_load_errors(folder.title, f"a {kind.__name__}") as warnings:
        try:
            network = build(
                str(folder.path),
                device=str(device),
                trust_remote_code=False,
                local_files_only=True,
                model_kwargs={"dtype": PRECISIONS[precision], "use_safetensors": True},
            )
        finally:  # which says more than what is raised then
            require_whole(folder, warnings)
    require_whole(folder, warnings, network.state_dict())
    _require_padding(folder, model, network)
    return folder, network, precision, device


def _require_kind(folder: ModelFolder, wanted: str) -> None:
    """Raise EncoderError for a model of another kind, which the library would convert."""
    found = kind_of(folder.path)
    if found not in (wanted, UNKNOWN):
        raise EncoderError(
            folder.title,
            expected=DESCRIPTIONS.get(wanted, f"a {wanted}"),
            found=DESCRIPTIONS.get(found, f"a {found}"),
            do=f"rerank with it: --rerank {folder.what}"
            if found == CROSS_ENCODER
            else "take another model",
        )


def require_whole(
    folder: ModelFolder, warnings: Sequence[str], own: Mapping[str, Any] | None = None
) -> None:
    """Raise EncoderError for a model that the library has converted, and for weights that do not
    fill it: transformers fills the rest with random numbers and only warns.

    warnings: what the libraries said. own: the network's tensors by their names, once it is there:
    weights that it does not take may be those of a head for another task, but no further layer and
    no projection."""
    lines = [line.strip() for warning in warnings for line in warning.splitlines()]
    if any(line.startswith("Converting ") for line in lines):
        raise EncoderError(
            folder.title,
            expected="a model of the kind that it was trained as",
            found="one of another kind, with pooling that it was not trained with",
            do="take another model",
        )
    said = {status: list[str]() for status in ("MISSING", "MISMATCH", "CONVERSION", "UNEXPECTED")}
    for line in lines:
        name, _, status = line.partition(" | ")
        if status.split(" ", 1)[0] in said:
            said[status.split(" ", 1)[0]].append(name.strip())
    # Of a network's tensor `0.model.encoder.layer.3.bias` the model's own name is the end.
    parts = {_with_any_number(name.partition(".model.")[2]) for name in own or ()} - {""}
    unexpected = [name for name in said["UNEXPECTED"] if _is_of_the_model(name, parts)]
    for found, names in (
        ("none for", said["MISSING"]),
        ("another shape of", said["MISMATCH"]),
        ("a format that cannot be converted of", said["CONVERSION"]),
        ("weights that it does not take:", unexpected),
    ):
        if names:
            raise EncoderError(
                folder.title,
                expected="all weights of the model",
                found=f"{found} {min(names)}",
                do="check that all files are of one model",
            )


def _is_of_the_model(name: str, parts: set[str]) -> bool:
    """Whether weights that were not taken are no head for another task: those of a layer beyond
    the last, or of a projection. parts: the network's tensors, numbers left out."""
    pattern = _with_any_number(name)
    return any(word in name for word in PROJECTIONS) or any(
        part.endswith(f".{pattern}") or pattern.endswith(f".{part}") or part == pattern
        for part in parts
        if "*" in pattern
    )


def _with_any_number(name: str) -> str:
    """`layers.3.weight`, and `layers.{2, 3}.weight` of a report, as `layers.*.weight`."""
    return re.sub(r"(?<=\.)(\d+|\{[^}]*\})(?=\.|$)", "*", name)


def _require_padding(folder: ModelFolder, model: str, network: Any) -> None:
    """Raise EncoderError for a SigLIP whose texts would not be padded to full length: it reads its
    vector off the last position, padding or not."""
    for module in network.modules():
        if not isinstance(module, Transformer) or module.config.model_type not in PADDED_IN_FULL:
            continue
        text = module.processing_kwargs.get("text", {})
        if {**text, **module.processing_kwargs.get("common", {})}.get("padding") != "max_length":
            raise EncoderError(
                folder.title,
                expected="a model whose texts may be of any length",
                found=f"a {module.config.model_type}, whose texts have to be padded to full length",
                do=f"take hf:{model}",
            )


def downscaled(pixels: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) -> the same at no more than MAX_PIXELS pixels, aspect ratio kept."""
    height, width, _ = pixels.shape
    scale = (MAX_PIXELS / (width * height)) ** 0.5
    if scale >= 1:
        return np.ascontiguousarray(pixels)
    size = max(1, int(width * scale)), max(1, int(height * scale))
    return np.ascontiguousarray(resize(pixels, size, Image.Resampling.BICUBIC))


def replace_surrogates(text: str) -> str:
    """The text with `?` for lone surrogates, which command lines and JSON can contain and no
    tokenizer takes."""
    return text.encode("utf-8", "replace").decode("utf-8")

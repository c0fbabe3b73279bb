"""What SentenceTransformers and CrossEncoders share: loading, and limits on their inputs."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from PIL import Image

from chiasm.pipeline.errors import EncoderError
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.pretrained.device_and_precision import (
    PRECISIONS,
    resolve_device,
    resolve_precision,
)
from chiasm.pipeline.pretrained.hub import ModelFolder, find_model, translating_load_errors

N = TypeVar("N")

WEIGHTS = "*.safetensors"
# A batch of 64 photographs of 12 megapixels is 2.3 GB of pixels; at this limit it is 400 MB. The
# limit is above the 1.8 megapixels that Qwen3-VL-Embedding uses, which is more than most models.
MAX_PIXELS = 2 << 20


def load_network(
    kind: type[N], model: str, settings: EncoderSettings, use: str = "encoder"
) -> tuple[ModelFolder, N, str, torch.device]:
    """A SentenceTransformer or a CrossEncoder of a folder or a hub id -> (its folder, the network,
    its precision, its device); use: what it is called in messages. No code of the model's own is
    run.

    Raises EncoderError or UsageError."""
    device = resolve_device(settings.device)
    precision = resolve_precision(settings.precision, device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    folder = find_model("st", model, WEIGHTS, nested=True, use=use)
    build: Any = kind
    with translating_load_errors(folder.title, f"a {kind.__name__}") as warnings:
        network = build(
            str(folder.path),
            device=str(device),
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs={"dtype": PRECISIONS[precision], "use_safetensors": True},
        )
    _require_all_weights(folder, warnings)
    return folder, network, precision, device


def _require_all_weights(folder: ModelFolder, warnings: list[str]) -> None:
    """Raise EncoderError for a checkpoint that lacks weights: transformers fills them with random
    numbers and only warns."""
    lines = [line.strip() for warning in warnings for line in warning.splitlines()]
    lacking = sorted(line.split()[0] for line in lines if "| MISSING" in line)
    if lacking:
        raise EncoderError(
            folder.title,
            expected="all weights of the model",
            found=f"none for {lacking[0]}",
            do="check that all files are of one model",
        )


def downscaled(image: Image.Image) -> Image.Image:
    """The picture at no more than MAX_PIXELS pixels, aspect ratio kept."""
    scale = (MAX_PIXELS / (image.width * image.height)) ** 0.5
    if scale >= 1:
        return image
    size = max(1, int(image.width * scale)), max(1, int(image.height * scale))
    return image.resize(size, Image.Resampling.BICUBIC)


def replace_surrogates(text: str) -> str:
    """The text with `?` for lone surrogates, which command lines and JSON can contain and no
    tokenizer takes."""
    return text.encode("utf-8", "replace").decode("utf-8")

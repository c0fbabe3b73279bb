"""What models of sentence-transformers share: how they are loaded, and what they are given."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from PIL import Image

from chiasm.pipeline.errors import EncoderError
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.pretrained.device import PRECISIONS, resolve_device, resolve_precision
from chiasm.pipeline.pretrained.hub import ModelFolder, find_model, loading

N = TypeVar("N")

WEIGHTS = "*.safetensors"
# A batch of 64 photographs of 12 megapixels is 2.3 GB of pixels; at this bound it is 400 MB. The
# bound lies above the 1.8 megapixels that Qwen3-VL-Embedding looks at, which is more than most do.
LARGEST = 2 << 20  # pixels


def load_network(
    kind: type[N], model: str, settings: EncoderSettings
) -> tuple[ModelFolder, N, str, torch.device]:
    """A SentenceTransformer or a CrossEncoder of a folder or a hub id, and where it is, in which
    precision, and on what. No code of the model's own is run.

    Raises EncoderError or UsageError, in one line."""
    device = resolve_device(settings.device)
    precision = resolve_precision(settings.precision, device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    folder = find_model("st", model, WEIGHTS, nested=True)
    build: Any = kind
    with loading(folder.what, f"a {kind.__name__}") as reports:
        network = build(
            str(folder.path),
            device=str(device),
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs={"dtype": PRECISIONS[precision], "use_safetensors": True},
        )
    _require_all_weights(folder, reports)
    return folder, network, precision, device


def _require_all_weights(folder: ModelFolder, reports: list[str]) -> None:
    """transformers fills what a checkpoint lacks with random numbers, and only reports it."""
    lines = [line.strip() for report in reports for line in report.splitlines()]
    lacking = sorted(line.split()[0] for line in lines if "| MISSING" in line)
    if lacking:
        raise EncoderError(
            f"encoder {folder.what}",
            expected="all weights of the model",
            found=f"none for {lacking[0]}",
            do="check that all files are of one model",
        )


def shrunk(image: Image.Image) -> Image.Image:
    """The picture at no more than LARGEST pixels, in its proportions."""
    shrink = (LARGEST / (image.width * image.height)) ** 0.5
    if shrink >= 1:
        return image
    size = max(1, int(image.width * shrink)), max(1, int(image.height * shrink))
    return image.resize(size, Image.Resampling.BICUBIC)


def clean(text: str) -> str:
    """Command lines and sloppy json carry lone surrogates, which no tokenizer takes."""
    return text.encode("utf-8", "replace").decode("utf-8")

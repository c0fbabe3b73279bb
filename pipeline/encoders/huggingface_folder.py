"""Parts of a model folder of transformers that encoders, matchers and answerers share: its network
and its image processor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers

from chiasm.pipeline.encoders.huggingface_kinds import Kind
from chiasm.pipeline.encoders.huggingface_texts import OURS_ALONE
from chiasm.pipeline.errors import EncoderError
from chiasm.pipeline.pretrained.hub import ModelFolder, require_shapes, translating_load_errors
from chiasm.pipeline.pretrained.image_processing import ImageProcessing

WEIGHTS = "model*.safetensors"
PROCESSORS = ("preprocessor_config.json", "processor_config.json")


def load_pixels(folder: ModelFolder, config: Any, kind: Kind) -> ImageProcessing:
    """The image processor of a folder. Raises EncoderError for steps that are not known here."""
    folder.require_one_of(PROCESSORS, "image processor")
    own: Any = kind.processor
    described = [folder.path / name for name in PROCESSORS]
    with translating_load_errors(folder.title, "an image processor", described):
        processor = (
            own.from_pretrained(folder.path, local_files_only=True)
            if own
            else transformers.AutoImageProcessor.from_pretrained(
                folder.path, backend="pil", **OURS_ALONE
            )
        )
    vision = getattr(config, "vision_config", None) or config.image_config  # FLAVA's
    return kind.pixels(processor, None if kind.any_size else vision, folder.title)


def load_network(
    folder: ModelFolder, name: str, dtype: torch.dtype, attention: Mapping[str, str] | None = None
) -> Any:
    """The network of a folder, for inference; name: its class of transformers; attention: as
    Kind.attention. Raises EncoderError where it cannot be loaded, lacks weights, or has some of
    another shape than config.json says."""
    with translating_load_errors(folder.title, "weights"):
        network, report = getattr(transformers, name).from_pretrained(
            folder.path,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            attn_implementation=None if attention is None else dict(attention),
        )
    require_shapes(folder.title, report)
    # transformers fills what a checkpoint lacks with random numbers, and only warns.
    lacking = sorted(report["missing_keys"])
    if lacking:
        raise EncoderError(
            folder.title,
            expected=f"all weights of a {name}",
            found=f"{len(lacking)} missing, the first {lacking[0]}",
            do="check that all files are of one model",
        )
    return network.eval().requires_grad_(False)

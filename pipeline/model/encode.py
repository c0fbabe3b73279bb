"""Pictures or texts -> unit vectors, in blocks that bound memory; shared by training and the
encoder.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from pipeline.model.pixels import to_pixels
from pipeline.model.tokenizer import Tokenizer
from pipeline.model.towers import DualEncoder

BLOCK = 256  # rows of one forward pass


@torch.inference_mode()
def encode_pixels(model: DualEncoder, pixels: Sequence[np.ndarray]) -> np.ndarray:
    """B arrays uint8 (3, S, S) -> (B, E) float32, unit rows."""
    rows = []
    for start in range(0, len(pixels), BLOCK):
        block = torch.from_numpy(np.stack(pixels[start : start + BLOCK]))
        _, vectors = model.encode_image(block.to(model.log_scale.device))
        rows.append(vectors.float().cpu().numpy())
    return np.concatenate(rows) if rows else np.zeros((0, model.config.dim), dtype=np.float32)


def encode_images(model: DualEncoder, images: Sequence[Image.Image]) -> np.ndarray:
    """B RGB pictures of any size -> (B, E) float32, unit rows."""
    side = model.config.image.side
    return encode_pixels(model, [to_pixels(image, side) for image in images])


@torch.inference_mode()
def encode_texts(model: DualEncoder, tokenizer: Tokenizer, texts: Sequence[str]) -> np.ndarray:
    """B texts -> (B, E) float32, unit rows."""
    rows = []
    for start in range(0, len(texts), BLOCK):
        ids = tokenizer.batch(texts[start : start + BLOCK], model.config.text.context)
        _, vectors = model.encode_text(torch.from_numpy(ids).to(model.log_scale.device))
        rows.append(vectors.float().cpu().numpy())
    return np.concatenate(rows) if rows else np.zeros((0, model.config.dim), dtype=np.float32)

"""Pictures or texts -> unit vectors, pairs of them -> joint vectors or matches, in blocks that
bound memory; shared by training and the encoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image

from pipeline.model.fusion import Modality
from pipeline.model.joint import JointNetwork
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


@torch.inference_mode()
def fuse_pairs(
    model: JointNetwork, tokenizer: Tokenizer, pixels: Sequence[np.ndarray], texts: Sequence[str]
) -> np.ndarray:
    """B arrays uint8 (3, S, S) with B texts -> joint vectors (B, E) float32, unit rows; the model
    has a fusion.
    """
    rows = [model.fuse(*pair).joint for pair in _pairs(model, tokenizer, pixels, texts)]
    if not rows:
        return np.zeros((0, model.config.dim), dtype=np.float32)
    return torch.cat(rows).float().cpu().numpy()


@torch.inference_mode()
def match_pairs(
    model: JointNetwork, tokenizer: Tokenizer, pixels: Sequence[np.ndarray], texts: Sequence[str]
) -> np.ndarray:
    """B arrays uint8 (3, S, S) with B texts -> (B,) float32, the log odds that text i tells of
    picture i; the model has a fusion.
    """
    rows = [model.match(*pair).logit for pair in _pairs(model, tokenizer, pixels, texts)]
    return torch.cat(rows).float().cpu().numpy() if rows else np.zeros(0, dtype=np.float32)


def _pairs(
    model: JointNetwork, tokenizer: Tokenizer, pixels: Sequence[np.ndarray], texts: Sequence[str]
) -> Iterator[tuple[Modality, Modality]]:
    """Texts and pictures of a block, through their towers."""
    device = model.log_scale.device
    for start in range(0, len(pixels), BLOCK):
        some = slice(start, start + BLOCK)
        ids = torch.from_numpy(tokenizer.batch(texts[some], model.config.text.context)).to(device)
        block = torch.from_numpy(np.stack(pixels[some])).to(device)
        yield model.text_modality(ids), model.image_modality(block)

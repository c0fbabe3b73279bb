"""Pictures or texts -> what the joint network makes of them, pairs of them -> joint vectors or
matches, in blocks that bound memory; shared by training and the encoder.

Letters: B rows, N and T tokens, D their width, E width of a unit vector, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from chiasm.pipeline.model.fusion import Modality
from chiasm.pipeline.model.joint import JointNetwork
from chiasm.pipeline.model.preprocess import to_pixels
from chiasm.pipeline.model.tokenizer import Tokenizer
from chiasm.pipeline.model.towers import DualEncoder

BLOCK = 256  # rows of one forward pass
SPAN = 4096  # pairs whose tokens are held at a time, some 100 MB


@torch.inference_mode()
def image_modality(model: JointNetwork, pixels: Sequence[np.ndarray]) -> Modality:
    """B > 0 arrays uint8 (3, S, S) -> tokens (B, N, D) and unit vectors (B, E) float32."""
    device = model.log_scale.device
    blocks = (pixels[start : start + BLOCK] for start in range(0, len(pixels), BLOCK))
    return Modality.rows(
        [model.image_modality(torch.from_numpy(np.stack(block)).to(device)) for block in blocks]
    )


@torch.inference_mode()
def text_modality(model: JointNetwork, tokenizer: Tokenizer, texts: Sequence[str]) -> Modality:
    """B > 0 texts -> tokens (B, T, D) and unit vectors (B, E) float32; T: that of the longest."""
    return ids_modality(model, tokenizer.batch(texts, model.config.text.context))


@torch.inference_mode()
def ids_modality(model: JointNetwork, ids: np.ndarray) -> Modality:
    """The same of what `Tokenizer.batch` gives, (B, T) int64."""
    blocks = torch.from_numpy(ids).to(model.log_scale.device).split(BLOCK)
    return Modality.rows([model.text_modality(block) for block in blocks])


@torch.inference_mode()
def encode_images(model: DualEncoder, images: Sequence[Image.Image]) -> np.ndarray:
    """B RGB pictures of any size -> (B, E) float32, unit rows."""
    pixels = [to_pixels(image, model.config.image.side) for image in images]
    rows = [np.zeros((0, model.config.dim), dtype=np.float32)]
    for start in range(0, len(pixels), BLOCK):
        block = torch.from_numpy(np.stack(pixels[start : start + BLOCK]))
        _, vectors = model.encode_image(block.to(model.log_scale.device))
        rows.append(vectors.float().cpu().numpy())
    return np.concatenate(rows)


@torch.inference_mode()
def encode_texts(model: DualEncoder, tokenizer: Tokenizer, texts: Sequence[str]) -> np.ndarray:
    """B texts -> (B, E) float32, unit rows."""
    rows = [np.zeros((0, model.config.dim), dtype=np.float32)]
    for start in range(0, len(texts), BLOCK):
        ids = tokenizer.batch(texts[start : start + BLOCK], model.config.text.context)
        _, vectors = model.encode_text(torch.from_numpy(ids).to(model.log_scale.device))
        rows.append(vectors.float().cpu().numpy())
    return np.concatenate(rows)


@torch.inference_mode()
def fuse_pairs(model: JointNetwork, text: Modality, image: Modality) -> np.ndarray:
    """B texts with B pictures, through their towers -> joint vectors (B, E) float32, unit rows;
    the model has a fusion.
    """
    rows = [np.zeros((0, model.config.dim), dtype=np.float32)]
    for block in torch.arange(len(text.vector), device=model.log_scale.device).split(BLOCK):
        joint = model.fuse(text.take(block), image.take(block)).joint
        rows.append(joint.float().cpu().numpy())
    return np.concatenate(rows)


@torch.inference_mode()
def match_pairs(
    model: JointNetwork,
    tokenizer: Tokenizer,
    pixels: Sequence[np.ndarray],
    texts: Sequence[str],
    pairs: np.ndarray,
) -> np.ndarray:
    """Arrays uint8 (3, S, S), texts, pairs (P, 2) int64 of picture and text -> (P,) float32, the
    log odds that the text is true of the picture; the model has a fusion.

    A picture or text goes through its tower once in SPAN pairs, however many of them it is in.
    """
    device = model.log_scale.device
    logits = [np.zeros(0, dtype=np.float32)]
    for start in range(0, len(pairs), SPAN):
        span = pairs[start : start + SPAN]
        images, image_rows = np.unique(span[:, 0], return_inverse=True)
        strings, text_rows = np.unique(span[:, 1], return_inverse=True)
        image = image_modality(model, [pixels[i] for i in images])
        text = text_modality(model, tokenizer, [texts[j] for j in strings])
        for block in range(0, len(span), BLOCK):
            i = torch.from_numpy(image_rows[block : block + BLOCK]).to(device)
            j = torch.from_numpy(text_rows[block : block + BLOCK]).to(device)
            logit = model.match(text.take(j), image.take(i)).logit
            logits.append(logit.float().cpu().numpy())
    return np.concatenate(logits)

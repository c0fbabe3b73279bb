"""Pictures or texts -> unit vectors, pairs of them -> joint vectors or matches, in blocks that
bound memory; shared by training and the encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

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


Look = Callable[[Sequence[np.ndarray]], tuple[torch.Tensor, torch.Tensor]]


@torch.inference_mode()
def look(model: DualEncoder, pixels: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """B arrays uint8 (3, S, S) -> tokens (B, N, D), unit vectors (B, E) float32."""
    return model.encode_image(torch.from_numpy(np.stack(pixels)).to(model.log_scale.device))


@torch.inference_mode()
def fuse_pairs(
    model: JointNetwork,
    tokenizer: Tokenizer,
    pixels: Sequence[np.ndarray],
    texts: Sequence[str],
    seen: Look,
) -> np.ndarray:
    """B arrays uint8 (3, S, S) with B texts -> joint vectors (B, E) float32, unit rows; the model
    has a fusion. seen: `look`, or what remembers it.
    """
    rows = [model.fuse(*pair).joint for pair in _pairs(model, tokenizer, pixels, texts, seen)]
    if not rows:
        return np.zeros((0, model.config.dim), dtype=np.float32)
    return torch.cat(rows).float().cpu().numpy()


@torch.inference_mode()
def match_pairs(
    model: JointNetwork,
    tokenizer: Tokenizer,
    pixels: Sequence[np.ndarray],
    texts: Sequence[str],
    seen: Look,
) -> np.ndarray:
    """B arrays uint8 (3, S, S) with B texts -> (B,) float32, the log odds that text i tells of
    picture i; the model has a fusion. seen: as above.
    """
    rows = [model.match(*pair).logit for pair in _pairs(model, tokenizer, pixels, texts, seen)]
    return torch.cat(rows).float().cpu().numpy() if rows else np.zeros(0, dtype=np.float32)


def _pairs(
    model: JointNetwork,
    tokenizer: Tokenizer,
    pixels: Sequence[np.ndarray],
    texts: Sequence[str],
    seen: Look,
) -> Iterator[tuple[Modality, Modality]]:
    """Texts and pictures of each BLOCK of pairs, through their towers: each different text, and
    each array that is not the same object, once in SPAN pairs."""
    device = model.log_scale.device
    for start in range(0, len(pixels), SPAN):
        some = slice(start, start + SPAN)
        arrays, of_image = _distinct(pixels[some], key=id)
        strings, of_text = _distinct(texts[some], key=str)
        tokens, vectors = seen(arrays)
        ids = torch.from_numpy(tokenizer.batch(strings, model.config.text.context)).to(device)
        said = [model.text_modality(block) for block in ids.split(BLOCK)]
        there = torch.ones(tokens.shape[:2], dtype=torch.bool, device=device)
        image, text = Modality(tokens, there, vectors), Modality.rows(said)
        for rows in torch.arange(len(of_image)).split(BLOCK):
            yield text.take(of_text[rows].to(device)), image.take(of_image[rows].to(device))


def _distinct(items: Sequence[Any], key: Callable[[Any], Any]) -> tuple[list[Any], torch.Tensor]:
    """The first item of each key, and where among them each item's is: (B,) int64."""
    first: dict[Any, Any] = {}
    for item in items:
        first.setdefault(key(item), item)
    place = {k: i for i, k in enumerate(first)}
    return list(first.values()), torch.tensor([place[key(item)] for item in items])

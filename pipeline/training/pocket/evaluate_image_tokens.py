"""What codes keep of pictures, on scenes of a fresh seed, and how predictable they are.

A reconstruction keeps the facts as far as an encoder that never saw one finds it by its caption as
well as the true picture, and as its pixels agree with the scene (drawn_check.py).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from chiasm.pipeline.encoders import MatchingEncoder
from chiasm.pipeline.model.image_tokens import ImageTokens
from chiasm.pipeline.model.preprocess import to_pixels
from chiasm.pipeline.records import IMAGE, TEXT
from chiasm.pipeline.scenes.draw import picture
from chiasm.pipeline.scenes.recall import recall_by_claims
from chiasm.pipeline.scenes.words import plan, render_caption
from chiasm.pipeline.scenes.world import Scene, gallery, new_style_seed
from chiasm.pipeline.training.pocket.drawn_check import agrees

BLOCK = 128  # pictures of one forward pass
STYLES = 16  # pictures of the same facts, by which the entropy of a code is estimated


def reconstruction(
    model: ImageTokens, encoder: MatchingEncoder, seed: int, samples: int
) -> dict[str, float]:
    """On the gallery of a seed, one complete English caption a scene, for pictures (`true_...`) and
    reconstructions: `r1`, R@1 from text to image; `match`, how often matching says that a caption
    is true of its picture; `agrees`, how often pixels agree with the facts. And `error`, mean
    absolute error of 0 to 255; `rmse`, root mean square error; `codes`, how many of the codes
    occur; `perplexity` of the codes.
    """
    scenes, rng = gallery(samples, seed), random.Random(f"reconstruction {seed}")
    claims = [plan(scene, rng) for scene in scenes]
    texts = [render_caption(claim, rng) for claim in claims]
    pixels = pixels_of(scenes, model.config.side)
    codes = encode(model, pixels)
    drawn = decode(model, codes)
    captions = encoder.encode(TEXT, texts).vectors
    pairs = np.arange(samples)[:, None].repeat(2, axis=1)
    found: dict[str, float] = {}
    for name, pictures in (("true_", pixels), ("", drawn)):
        images = [Image.fromarray(item.transpose(1, 2, 0)) for item in pictures]
        inputs = [encoder.preprocess(IMAGE, np.asarray(image)) for image in images]
        scores = captions @ encoder.encode(IMAGE, inputs).vectors.T
        recall = recall_by_claims(scores, claims, scenes)["text_to_image"]
        matched = encoder.match((IMAGE, inputs), (TEXT, texts), pairs) > 0
        agreed = [agrees(image, scene) for image, scene in zip(images, scenes, strict=True)]
        found[f"{name}r1"] = recall["r1"]
        found[f"{name}match"] = float(matched.mean())
        found[f"{name}agrees"] = float(np.mean(agreed))
    error = drawn.astype(np.float64) - pixels
    counts = np.bincount(codes.ravel(), minlength=model.config.vocabulary)
    return found | {
        "error": float(np.abs(error).mean()),
        "rmse": float(np.sqrt(np.square(error).mean())),
        "codes": float((counts > 0).sum()),
        "perplexity": 2 ** entropy_bits(counts),
    }


def predictability(model: ImageTokens, seed: int, samples: int) -> dict[str, float]:
    """How far the facts settle the codes, over pictures that differ in style alone, STYLES of each
    scene: `agreement`, how often a code is that of another such picture in the same place; `bits`,
    the entropy of a code given facts and place (of the counts, so too low by what STYLES pictures
    do not show; at most log2 STYLES).
    """
    rng = random.Random(f"predictability {seed}")
    same: list[float] = []
    bits: list[float] = []
    for scene in gallery(samples, seed):
        styles = [replace(scene, style_seed=new_style_seed(rng)) for _ in range(STYLES)]
        for column in encode(model, pixels_of(styles, model.config.side)).T:
            counts = np.unique(column, return_counts=True)[1]
            same.append(float((counts * (counts - 1)).sum() / (STYLES * (STYLES - 1))))
            bits.append(entropy_bits(counts))
    return {"agreement": float(np.mean(same)), "bits": float(np.mean(bits))}


def entropy_bits(counts: np.ndarray) -> float:
    """Entropy in bits of the distribution of these counts; 0 where nothing was counted."""
    shares = counts[counts > 0] / max(1, counts.sum())
    return max(0.0, -math.fsum(shares * np.log2(shares)))


def pixels_of(scenes: Sequence[Scene], side: int) -> np.ndarray:
    """Drawn scenes -> uint8 (B, 3, S, S)."""
    return np.stack([to_pixels(picture(scene), side) for scene in scenes])


def encode(model: ImageTokens, pixels: np.ndarray) -> np.ndarray:
    """uint8 (B, 3, S, S), B > 0 -> codes int64 (B, N), in blocks that bound memory."""
    return np.concatenate(
        [model.encode(block).numpy() for block in torch.from_numpy(pixels).split(BLOCK)]
    )


def decode(model: ImageTokens, codes: np.ndarray) -> np.ndarray:
    """Codes int64 (B, N), B > 0 -> uint8 (B, 3, S, S), in blocks that bound memory."""
    return np.concatenate(
        [model.decode(block).numpy() for block in torch.from_numpy(codes).split(BLOCK)]
    )

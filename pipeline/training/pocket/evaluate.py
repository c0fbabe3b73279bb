"""Recall by claims on a gallery of the world, in each language."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from chiasm.pipeline.model.inference import encode_images, encode_texts
from chiasm.pipeline.model.joint import JointNetwork
from chiasm.pipeline.model.tokenizer import Tokenizer
from chiasm.pipeline.scenes.draw import picture
from chiasm.pipeline.scenes.recall import Recall, recall_by_claims
from chiasm.pipeline.scenes.words import LANGUAGES, plan, render_caption
from chiasm.pipeline.scenes.world import gallery
from chiasm.pipeline.training.pocket.settings import TrainSettings


def gallery_recall(
    encode_images: Callable[[Sequence[Image.Image]], np.ndarray],
    encode_texts: Callable[[Sequence[str]], np.ndarray],
    samples: int,
    seed: int,
    languages: Sequence[str] = LANGUAGES,
) -> dict[str, dict[str, Recall]]:
    """Recall on the gallery of `seed`, one complete caption a scene.

    The encoders give unit rows (B, E). -> {"text_to_image": {"en": {"r1", "r5", "r10"}, ...},
    "image_to_text": {...}}.
    """
    scenes = gallery(samples, seed)
    rng = random.Random(f"measure {seed}")
    claims = [plan(scene, rng) for scene in scenes]
    images = encode_images([picture(scene) for scene in scenes])  # (N, E)
    found: dict[str, dict[str, Recall]] = {}
    for language in languages:
        texts = encode_texts([render_caption(claim, rng, language) for claim in claims])  # (N, E)
        for direction, recall in recall_by_claims(texts @ images.T, claims, scenes).items():
            found.setdefault(direction, {})[language] = recall
    return found


def tower_recall(
    _: JointNetwork, tokenizer: Tokenizer, settings: TrainSettings
) -> Callable[[JointNetwork], dict[str, Any]]:
    """-> a function of a model: `recall` of its towers on the fixed gallery, which no batch is
    drawn from, as a field of a record."""

    def recall(model: JointNetwork) -> dict[str, Any]:
        found = gallery_recall(
            lambda images: encode_images(model, images),
            lambda texts: encode_texts(model, tokenizer, texts),
            settings.gallery,
            settings.gallery_seed,
        )
        return {"recall": found}

    return recall

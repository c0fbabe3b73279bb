"""Drawn pictures, judged by another model and by their pixels, on scenes of fresh seeds.

A drawn picture is right where a model that was trained with another seed finds a caption that is
true of its scene first, among the captions of a gallery with twins. The same model's figure for the
true pictures stands beside it, and that for true pictures through the codes by which a model draws:
no drawing is expected to do more. And its pixels have to agree with what the caption claims
(drawn_check.py), which no model is asked for.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from chiasm.pipeline.encoders import Answerer, Encoder, GenerateSettings, Request
from chiasm.pipeline.model.image_tokens import ImageTokens
from chiasm.pipeline.records import IMAGE, TEXT
from chiasm.pipeline.scenes.claims import Claims
from chiasm.pipeline.scenes.draw import picture
from chiasm.pipeline.scenes.recall import recall_by_claims
from chiasm.pipeline.scenes.words import LANGUAGES, plan, render_caption
from chiasm.pipeline.scenes.world import Scene, World, gallery
from chiasm.pipeline.training.pocket.drawn_check import agrees_with_caption
from chiasm.pipeline.training.pocket.evaluate_image_tokens import decode, encode, pixels_of

GALLERY = 100  # captions among which one is found


@dataclass(frozen=True)
class Drawings:
    """Scenes of a gallery, a complete caption of each, and what was drawn of it: RGB pictures."""

    scenes: Sequence[Scene]
    claims: Sequence[Claims]
    texts: Sequence[str]
    pictures: Sequence[Image.Image]


def draw_gallery(
    answerer: Answerer, seed: int, world: World, settings: GenerateSettings
) -> Drawings:
    """GALLERY scenes of a seed with captions in either language by turns, drawn by an answerer.
    Some show a combination that is withheld from training. ValueError where it gave no picture."""
    scenes = gallery(GALLERY, seed, world)
    rng = random.Random(f"imagine {seed}")
    claims = [plan(scene, rng) for scene in scenes]
    texts = [
        render_caption(claim, rng, LANGUAGES[row % len(LANGUAGES)], world)
        for row, claim in enumerate(claims)
    ]
    replies = answerer.answer([Request("imagine", text=text) for text in texts], settings)
    drawn = [reply.image for reply in replies if reply.image is not None]
    if len(drawn) != len(texts):
        raise ValueError(f"{len(texts)} captions: expected as many pictures, found {len(drawn)}")
    return Drawings(scenes, claims, texts, [Image.fromarray(pixels) for pixels in drawn])


def measure_drawings(
    drawings: Drawings, encoder: Encoder, tokens: ImageTokens | None = None
) -> dict[str, float]:
    """`r1`: the share of drawn pictures that find a true caption first, `true_r1` that of the true
    pictures, `agrees` and `true_agrees`: the share whose pixels agree with the caption. With image
    tokens `coded_r1` and `coded_agrees`, of true pictures through their codes."""
    captions = encoder.encode(TEXT, list(drawings.texts)).vectors
    found: dict[str, float] = {}
    kinds = [("true_", list(map(picture, drawings.scenes))), ("", drawings.pictures)]
    if tokens is not None:
        coded = decode(tokens, encode(tokens, pixels_of(drawings.scenes, tokens.config.side)))
        kinds.append(("coded_", [Image.fromarray(item.transpose(1, 2, 0)) for item in coded]))
    for name, pictures in kinds:
        inputs = [encoder.preprocess(IMAGE, np.asarray(item)) for item in pictures]
        scores = captions @ encoder.encode(IMAGE, inputs).vectors.T
        recall = recall_by_claims(scores, drawings.claims, drawings.scenes)["image_to_text"]
        described = zip(pictures, drawings.claims, strict=True)
        found[f"{name}r1"] = recall["r1"]
        found[f"{name}agrees"] = float(np.mean([agrees_with_caption(*pair) for pair in described]))
    return found


def side_by_side(drawings: Drawings, count: int) -> Iterator[tuple[str, Image.Image, Image.Image]]:
    """Of the first `count` captions: the caption, the true picture, the drawn one."""
    for row in range(min(count, len(drawings.texts))):
        drawn = drawings.pictures[row]
        yield drawings.texts[row], picture(drawings.scenes[row], drawn.width), drawn

"""What matching and fusion add to two towers: trials on scenes of a fresh seed, by any encoder.

Hard twins: every scene has nine others one change away (pipeline/scenes/hard.py). R@1 of the
vectors, and after the first 20 were scored again by matching (its logit plus the cosine, as in
ALBEF), and how often matching is right about a complete caption and its picture, and about that
caption and a picture one change away of which it is false. Joint vectors: captions that leave
things unsaid are fused with their pictures and asked for by other such captions of the same scenes,
against the picture alone, the caption alone and the mean of both.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from chiasm.pipeline.encoders import Encoder, MatchingEncoder, normalized_mean
from chiasm.pipeline.records import IMAGE, TEXT
from chiasm.pipeline.scenes.claims import holds_matrix
from chiasm.pipeline.scenes.draw import picture
from chiasm.pipeline.scenes.hard import hard_gallery
from chiasm.pipeline.scenes.recall import recall_at, top
from chiasm.pipeline.scenes.unseen import unseen_gallery, withheld_in
from chiasm.pipeline.scenes.words import LANGUAGES, plan, tell
from chiasm.pipeline.scenes.world import Scene, gallery
from chiasm.pipeline.training.pocket.perturb import CHANGES, one_change

RERANKED = 20


def pixels_of(encoder: Encoder, scenes: Sequence[Scene]) -> list[Any]:
    """The drawn scenes as the encoder takes them."""
    return [encoder.preprocess(IMAGE, np.asarray(picture(scene))) for scene in scenes]


def withheld(encoder: Encoder, seed: int, samples: int, language: str) -> dict[str, float]:
    """Recall of queries that tell a combination never met in training (pipeline/scenes/unseen.py),
    by vectors."""
    scenes, claims = unseen_gallery(samples, seed)
    asked = [n for n, scene in enumerate(scenes) if withheld_in(scene)]
    rng = random.Random(f"withheld {seed}")
    texts = [tell(claims[n], rng, language) for n in asked]
    images = encoder.encode(IMAGE, pixels_of(encoder, scenes)).vectors
    first = top(encoder.encode(TEXT, texts).vectors @ images.T, 10)
    return {**recall_at(first, holds_matrix([claims[n] for n in asked], scenes))}


def hard_twins(
    encoder: MatchingEncoder, seed: int, samples: int, language: str
) -> dict[str, float]:
    """R@1 of complete captions among hard twins, by vectors and by matching on top of them."""
    scenes, rng = hard_gallery(samples, seed), random.Random(f"hard {seed}")
    claims = [plan(scene, rng) for scene in scenes]
    texts = [tell(claim, rng, language) for claim in claims]
    pixels = pixels_of(encoder, scenes)
    scores = encoder.encode(TEXT, texts).vectors @ encoder.encode(IMAGE, pixels).vectors.T  # (Q, N)
    first, correct = top(scores, RERANKED), holds_matrix(claims, scenes)
    pairs = np.array([(n, i) for i, found in enumerate(first) for n in found])
    logits = encoder.match((IMAGE, pixels), (TEXT, texts), pairs)
    final = logits.reshape(first.shape) + np.take_along_axis(scores, first, axis=1)
    again = np.take_along_axis(first, np.argsort(-final, axis=1, kind="stable"), axis=1)
    return {
        "vectors_r1": recall_at(first, correct)["r1"],
        "matching_r1": recall_at(again, correct)["r1"],
    }


def accuracy(encoder: MatchingEncoder, seed: int, samples: int) -> dict[str, float]:
    """Share of pairs that matching is right about, half of them wrong by one change; and of the two
    pictures of a caption how often the right one is preferred, change by change, by matching and by
    vectors."""
    rng = random.Random(f"accuracy {seed}")
    changed: list[str] = []
    pairs: list[tuple[Scene, str]] = []
    for scene in gallery(samples, seed):
        change, claims, wrong = one_change(scene, rng)
        text = tell(claims, rng, rng.choice(LANGUAGES))
        pairs += [(scene, text), (wrong, text)]
        changed.append(change)
    pixels = pixels_of(encoder, [scene for scene, _ in pairs])
    texts = [text for _, text in pairs]
    logits = encoder.match(
        (IMAGE, pixels), (TEXT, texts), np.arange(len(texts))[:, None].repeat(2, 1)
    )
    cosines = (encoder.encode(IMAGE, pixels).vectors * encoder.encode(TEXT, texts).vectors).sum(
        axis=1
    )
    right, wrong_pairs = logits[0::2] > 0, logits[1::2] <= 0
    told = {
        "right_pairs": float(right.mean()),
        "wrong_pairs": float(wrong_pairs.mean()),
        "all": float((right.mean() + wrong_pairs.mean()) / 2),
    }
    for name in CHANGES:
        some = np.array(changed) == name
        for way, scores in (("matching", logits), ("vectors", cosines)):
            preferred = scores[0::2] > scores[1::2]
            told[f"told_apart_{name}_by_{way}"] = float(preferred[some].mean())
    return told


def joint(encoder: MatchingEncoder, seed: int, samples: int) -> dict[str, float]:
    """R@1 and R@10 of vectors of pictures with partial captions, asked for by other such ones."""
    scenes, rng = gallery(samples, seed), random.Random(f"joint {seed}")
    inside = [
        tell(plan(scene, rng, complete=False), rng, rng.choice(LANGUAGES)) for scene in scenes
    ]
    claims = [plan(scene, rng, complete=False) for scene in scenes]
    queries = encoder.encode(TEXT, [tell(c, rng, rng.choice(LANGUAGES)) for c in claims]).vectors
    pixels = pixels_of(encoder, scenes)
    image, text = encoder.encode(IMAGE, pixels), encoder.encode(TEXT, inside)
    ways = {
        "image": image.vectors,
        "text": text.vectors,
        "mean": normalized_mean([image.vectors, text.vectors]),
        "fusion": encoder.encode_joint({IMAGE: image, TEXT: text}),
    }
    correct = holds_matrix(claims, scenes)
    told = {}
    for name, vectors in ways.items():
        recall = recall_at(top(queries @ vectors.T, 10), correct)
        told |= {f"{name}_r1": recall["r1"], f"{name}_r10": recall["r10"]}
    return told

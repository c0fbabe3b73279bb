"""What matching adds to two towers, on scenes of a fresh seed, for any encoder.

Hard twins: every scene has nine others one change away (pipeline/scenes/hard_twins.py). R@1 of the
vectors, R@1 after the first 20 were reranked by matching (its logit plus the cosine, as in ALBEF),
and the accuracy of matching on complete captions with their picture and with a picture one change
away of which they are false. Joint vectors have a module of their own, evaluate_joint.py.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from chiasm.pipeline.encoders import Encoder, MatchingEncoder
from chiasm.pipeline.metrics import reordered, right_at, signs_right, top_k
from chiasm.pipeline.records import IMAGE, TEXT
from chiasm.pipeline.scenes.claims import holds_matrix
from chiasm.pipeline.scenes.draw import picture
from chiasm.pipeline.scenes.hard_twins import hard_gallery
from chiasm.pipeline.scenes.recall import recall_of_scores
from chiasm.pipeline.scenes.unseen import unseen_gallery, withheld_in
from chiasm.pipeline.scenes.words import LANGUAGES, plan, render_caption
from chiasm.pipeline.scenes.world import Scene, gallery
from chiasm.pipeline.training.paired import named_share
from chiasm.pipeline.training.pocket.falsifying_changes import CHANGES, one_change

RERANKED = 20


def pixels_of(encoder: Encoder, scenes: Sequence[Scene]) -> list[Any]:
    """The drawn scenes as the encoder takes them."""
    return [encoder.preprocess(IMAGE, np.asarray(picture(scene))) for scene in scenes]


def encode_pictures(encoder: Encoder, pictures: Sequence[Image.Image]) -> np.ndarray:
    """B RGB pictures -> (B, D) float32 unit rows."""
    pixels = [encoder.preprocess(IMAGE, np.asarray(item)) for item in pictures]
    return encoder.encode(IMAGE, pixels).vectors


def withheld(encoder: Encoder, seed: int, samples: int, language: str) -> dict[str, float]:
    """Recall by vectors of queries with a combination that training never shows
    (pipeline/scenes/unseen.py)."""
    scenes, claims = unseen_gallery(samples, seed)
    query_rows = [n for n, scene in enumerate(scenes) if withheld_in(scene)]
    rng = random.Random(f"withheld {seed}")
    texts = [render_caption(claims[n], rng, language) for n in query_rows]
    images = encoder.encode(IMAGE, pixels_of(encoder, scenes)).vectors
    scores = encoder.encode(TEXT, texts).vectors @ images.T
    return recall_of_scores(scores, holds_matrix([claims[n] for n in query_rows], scenes))


def hard_twins(
    encoder: MatchingEncoder, seed: int, samples: int, language: str
) -> dict[str, float]:
    """R@1 of complete captions among hard twins, by vectors and by matching on top of them, each
    with its standard error."""
    scenes, rng = hard_gallery(samples, seed), random.Random(f"hard {seed}")
    claims = [plan(scene, rng) for scene in scenes]
    texts = [render_caption(claim, rng, language) for claim in claims]
    pixels = pixels_of(encoder, scenes)
    scores = encoder.encode(TEXT, texts).vectors @ encoder.encode(IMAGE, pixels).vectors.T  # (Q, N)
    first, correct = top_k(scores, RERANKED), holds_matrix(claims, scenes)
    pairs = np.array([(max(n, 0), i) for i, found in enumerate(first) for n in found])
    logits = encoder.match((IMAGE, pixels), (TEXT, texts), pairs)
    final = logits.reshape(first.shape) + np.take_along_axis(scores, first, axis=1)
    again = reordered(first, final)
    queries = np.arange(len(texts))
    return {
        **named_share("vectors_r1", right_at(first, correct)[:, 0], queries),
        **named_share("matching_r1", right_at(again, correct)[:, 0], queries),
    }


def accuracy(encoder: MatchingEncoder, seed: int, samples: int) -> dict[str, float]:
    """Accuracy of matching on pairs, half of them wrong by one change; and of the two pictures of a
    caption how often the right one is preferred, change by change, by matching and by vectors.
    Each with its standard error over scenes."""
    rng = random.Random(f"accuracy {seed}")
    changed: list[str] = []
    pairs: list[tuple[Scene, str]] = []
    for scene in gallery(samples, seed):
        change, claims, wrong = one_change(scene, rng)
        text = render_caption(claims, rng, rng.choice(LANGUAGES))
        pairs += [(scene, text), (wrong, text)]
        changed.append(change)
    pixels = pixels_of(encoder, [scene for scene, _ in pairs])
    texts = [text for _, text in pairs]
    rows = np.arange(len(texts))[:, None].repeat(2, axis=1)
    logits = encoder.match((IMAGE, pixels), (TEXT, texts), rows)
    images, captions = encoder.encode(IMAGE, pixels), encoder.encode(TEXT, texts)
    cosines = (images.vectors * captions.vectors).sum(axis=1)
    right = signs_right(logits, np.arange(len(logits)) % 2 == 0)
    scenes = np.arange(len(changed))
    found = {
        **named_share("right_pairs", right[0::2], scenes),
        **named_share("wrong_pairs", right[1::2], scenes),
        **named_share("all", right, scenes.repeat(2)),
    }
    for name in CHANGES:
        some = np.array(changed) == name
        for way, scores in (("matching", logits), ("vectors", cosines)):
            preferred = scores[0::2] > scores[1::2]
            found |= named_share(f"told_apart_{name}_by_{way}", preferred[some], scenes[some])
    return found

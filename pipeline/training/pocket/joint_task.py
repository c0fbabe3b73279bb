"""The task that joint vectors are measured by: a picture with a caption that leaves things unsaid,
searched by another such caption of the same scene.

The picture shows everything that either caption states, so a perfect picture vector would leave
nothing to gain: what a joint vector adds is what the picture's vector lost or got wrong. A hit is
right where all claims of the query are true of its scene, whatever its own caption says. What it
has to beat is the best weighted mean of the two vectors, the weight chosen on other galleries.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chiasm.pipeline.metrics import right_at, top_k
from chiasm.pipeline.scenes.claims import holds_matrix
from chiasm.pipeline.scenes.words import LANGUAGES, plan, render_caption
from chiasm.pipeline.scenes.world import WORLD_1, Scene, World
from chiasm.pipeline.training.paired import TEXT_WEIGHTS

HITS = 10  # of a query that are looked at


@dataclass(frozen=True)
class JointTask:
    """N scenes; captions, one of each, fused with its picture; queries, another of each, in either
    language; true (N, N) bool: all that the words of query i claim is true of scene j."""

    scenes: Sequence[Scene]
    captions: Sequence[str]
    queries: Sequence[str]
    true: np.ndarray


@dataclass(frozen=True)
class JointVectors:
    """Vectors (N, E) float32 of a task's pictures, captions, pairs of both, and queries; unit
    rows."""

    image: np.ndarray
    text: np.ndarray
    joint: np.ndarray
    queries: np.ndarray

    def mean(self, text_weight: float) -> np.ndarray:
        """Of picture and caption, the latter so much of it: (N, E), unit rows."""
        mixed = (1 - text_weight) * self.image + text_weight * self.text
        return mixed / np.linalg.norm(mixed, axis=1, keepdims=True)


def joint_task(scenes: Sequence[Scene], rng: random.Random, world: World = WORLD_1) -> JointTask:
    """The task of some scenes of a world: captions, claims of queries and their wording drawn in
    this order."""
    captions = [_caption(scene, rng, world) for scene in scenes]
    claims = [plan(scene, rng, complete=False) for scene in scenes]
    languages, queries = [], []
    for claim in claims:
        languages.append(rng.choice(LANGUAGES))
        queries.append(render_caption(claim, rng, languages[-1], world))
    return JointTask(scenes, captions, queries, holds_matrix(claims, scenes, languages))


def _caption(scene: Scene, rng: random.Random, world: World) -> str:
    return render_caption(plan(scene, rng, complete=False), rng, rng.choice(LANGUAGES), world)


def right_hits(queries: np.ndarray, vectors: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Queries (Q, E) searched among vectors (N, E): is the r-th hit right? (Q, HITS) bool. true
    (Q, N) bool."""
    return right_at(top_k(queries @ vectors.T, HITS), true)


def best_text_weight(galleries: Sequence[tuple[JointTask, JointVectors]]) -> float:
    """The one of TEXT_WEIGHTS whose mean has the most queries answered right by the first hit, over
    all galleries; of equals the smallest."""
    first = [
        sum(
            int(right_hits(vectors.queries, vectors.mean(weight), task.true)[:, 0].sum())
            for task, vectors in galleries
        )
        for weight in TEXT_WEIGHTS
    ]
    return TEXT_WEIGHTS[int(np.argmax(first))]

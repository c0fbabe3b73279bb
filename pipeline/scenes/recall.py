"""Recall by claims: how often one of the first k hits is true, not how often it is the same sample.

Twins and partial captions make several pictures right for one caption, so right is decided by
`holds_matrix` from the facts; equal strings play no part.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chiasm.pipeline.metrics import KS, recalls, right_at, top_k
from chiasm.pipeline.scenes.claims import Claims, holds_matrix
from chiasm.pipeline.scenes.world import Scene

Recall = dict[str, float]


def recall_by_claims(
    scores: np.ndarray, claims: Sequence[Claims], scenes: Sequence[Scene], ks: Sequence[int] = KS
) -> dict[str, Recall]:
    """Both directions from one table of scores.

    scores (Q, N) float: caption q against picture n, higher is nearer; claims of the Q captions,
    facts of the N pictures -> {"text_to_image": {"r1": ...}, "image_to_text": {...}}. A picture is
    right for a caption if all the caption's claims hold of it; a caption is right for a picture
    likewise.
    """
    correct = holds_matrix(claims, scenes)
    return {
        "text_to_image": recall_of_scores(scores, correct, ks),
        "image_to_text": recall_of_scores(scores.T, correct.T, ks),
    }


def recall_of_scores(scores: np.ndarray, relevant: np.ndarray, ks: Sequence[int] = KS) -> Recall:
    """Scores (Q, N), relevant (Q, N) bool -> R@k for each k."""
    return recalls(right_at(top_k(scores, max(ks)), relevant), ks)

"""Recall by claims: how often one of the first k hits is true, not how often it is the same sample.

Twins and partial captions make several pictures right for one caption, so right is decided by
`holds_matrix` from the facts; equal strings play no part. pipeline/metrics.py has the recall that
needs no scenes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chiasm.pipeline.scenes.claims import Claims, holds_matrix
from chiasm.pipeline.scenes.world import Scene

KS = (1, 5, 10)
Recall = dict[str, float]


def evaluate(
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
        "text_to_image": recall_at(top(scores, max(ks)), correct, ks),
        "image_to_text": recall_at(top(scores.T, max(ks)), correct.T, ks),
    }


def top(scores: np.ndarray, k: int) -> np.ndarray:
    """(Q, N) scores -> (Q, min(k, N)) positions, best first; of equals the lower position first."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def recall_at(
    hits: Sequence[Sequence[int]] | np.ndarray, correct: np.ndarray, ks: Sequence[int] = KS
) -> Recall:
    """Share of queries that have a right hit among their first k.

    hits: for each of Q queries positions below N, best first, -1 or a short list where there were
    fewer; correct (Q, N) bool -> {"r1": 0.8, ...}, unrounded.
    """
    if len(hits) != len(correct):
        raise ValueError(f"{len(hits)} lists of hits for {len(correct)} queries")
    found = dict.fromkeys(ks, 0)
    for positions, right in zip(hits, correct, strict=True):
        ranks = (rank for rank, n in enumerate(positions) if n >= 0 and right[n])
        first = next(ranks, None)
        for k in ks:
            found[k] += first is not None and first < k
    return {f"r{k}": found[k] / max(1, len(correct)) for k in ks}

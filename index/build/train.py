"""Learning what the segments of a column share."""

from __future__ import annotations

import numpy as np

from chiasm.index.faiss_runtime import load_faiss
from chiasm.index.plan import Plan
from chiasm.index.segments import Trained, code_ranges


def train(plan: Plan, sample: np.ndarray) -> Trained:
    """sample: (n, D) float32."""
    faiss = load_faiss()
    kmeans = faiss.Kmeans(sample.shape[1], plan.lists, niter=10, seed=1)
    kmeans.train(sample)
    bias = np.zeros(plan.lists, np.float32)
    return Trained(plan, kmeans.centroids.copy(), bias, code_ranges(sample))

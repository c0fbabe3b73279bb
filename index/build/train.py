"""Learning what the segments of a column share: projection, centroids, ranges of the codes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from chiasm.index.build.project import fit_projection, second_moment
from chiasm.index.faiss_runtime import load_faiss
from chiasm.index.plan import TRAIN_PER_LIST, Plan
from chiasm.index.segments import Trained, code_ranges

ITERATIONS = 10  # of k-means: more change no recall that can be measured
STARTED = 4  # of k-means that begins with the lists of a trial
DEVIATION_ROWS = 16  # a list: a deviation to a sixth of itself
MOMENT_QUERIES = 4096
AT_ONCE = 8192  # rows, so that memory is bounded
# Of the range of a dimension in the sample, on both sides. Unseen rows lie beyond the sample's
# extremes by a little; codes get that much coarser.
MARGIN = 0.05

Projection = tuple[np.ndarray, np.ndarray]  # of rows and of queries, (D, d) float32


def train(
    plan: Plan,
    sample: np.ndarray,
    queries: np.ndarray | None = None,
    *,
    seed: int = 1,
    projection: Projection | None = None,
    centroids: np.ndarray | None = None,
    start: tuple[np.ndarray, np.ndarray] | None = None,
    iterations: int = ITERATIONS,
    per_list: int = TRAIN_PER_LIST,
) -> Trained:
    """What the segments of a column of this plan share.

    sample (n, D) float32: rows, drawn evenly. queries (m, D) float32: such as will be asked; None:
    the sample stands in. projection: one that was fitted to them, of as many dimensions as the plan
    says or more. centroids: of the lists, where they are known. start: rows (n, D) and the lists
    that they are in (n,), from whose means k-means begins. iterations, per_list: of k-means, and
    the rows a list that it takes.
    """
    queries = sample if queries is None else queries
    onto_rows = onto_queries = None
    if plan.family == "projected":
        both = projection or fit_projection(queries, sample, plan.dims)
        rotation = random_rotation(plan.dims)
        onto_rows, onto_queries = (side[:, : plan.dims] @ rotation for side in both)
    coded, seen = _coded(plan, sample, onto_rows), _coded(plan, queries, onto_queries)
    x, xq = (coded, seen) if plan.space == "projected" else (sample, queries)
    if centroids is None:
        some, first = x[: per_list * plan.lists], None
        if start is not None:
            rows = start[0] if x is sample else _coded(plan, start[0], onto_rows)
            first = means(rows, start[1], some[: plan.lists])
        centroids = cluster(some, plan.lists, seed, iterations, first)
    trained = Trained(
        plan,
        centroids,
        np.zeros(plan.lists, np.float32),
        _ranges(coded) if plan.codes == "SQ8" else None,
        onto_rows,
        onto_queries,
    )
    if plan.spread:
        some = slice(0, DEVIATION_ROWS * plan.lists)
        deviations = list_deviations(
            trained, sample[some], coded[some], second_moment(xq[:MOMENT_QUERIES])
        )
        trained = replace(trained, list_bias=np.float32(plan.spread) * deviations)
    return trained


def _coded(plan: Plan, x: np.ndarray, onto: np.ndarray | None) -> np.ndarray:
    """Vectors (n, D) in the space of the codes: (n, d) float32. onto (D, d): the projection."""
    if onto is not None:
        return x @ onto
    return x[:, : plan.dims].copy() if plan.is_prefix else x


def means(x: np.ndarray, lists: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The mean of the vectors (n, s) in each list (n,), that of `others` (L, s) for an empty one:
    (L, s) float32."""
    counts = np.bincount(lists, minlength=len(others))
    order = np.argsort(lists, kind="stable")
    filled = np.flatnonzero(counts)
    firsts = (np.cumsum(counts) - counts)[filled]
    found = others.copy()
    found[filled] = np.add.reduceat(x[order], firsts, axis=0) / counts[filled, None]
    return found


def cluster(
    x: np.ndarray,
    lists: int,
    seed: int,
    iterations: int = ITERATIONS,
    start: np.ndarray | None = None,
) -> np.ndarray:
    """Centroids of k-means, (lists, s) float32, of vectors (n, s) float32, from `start` on where it
    is given. Lists are by distance, not by inner product: a long centroid would get the rows of its
    neighbours. Where FAISS comes by the extra `gpu` and there are CUDA devices, it runs on these;
    untested."""
    faiss = load_faiss()
    kmeans = faiss.Kmeans(
        x.shape[1],
        lists,
        niter=iterations,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=TRAIN_PER_LIST,
        gpu=faiss.get_num_gpus(),
    )
    kmeans.train(np.ascontiguousarray(x, dtype=np.float32), init_centroids=start)
    return kmeans.centroids.copy()


def random_rotation(dims: int) -> np.ndarray:
    """Of the space of the codes, always the same: (dims, dims) float32. Inner products are kept,
    and all dimensions get the same range, of which 4-bit codes lose less (query/fast_scan.py)."""
    normal = np.random.default_rng(1).standard_normal((dims, dims))
    return np.linalg.qr(normal)[0].astype(np.float32)


def list_deviations(
    trained: Trained, sample: np.ndarray, coded: np.ndarray, moment: np.ndarray
) -> np.ndarray:
    """The standard deviation of <q, x> over the rows x of each list, for a typical query q:
    sqrt(E_q[q^T Cov_list q]), (L,) float32; 0 for a list without rows of the sample.

    sample (n, D), coded (n, d): rows, and the same in the space of the codes. moment: E[q q^T] in
    the space of the lists. Ranking lists by mean plus deviations is "optimistic" routing (Bruch et
    al., 2024, "Optimistic query routing in clustering-based ANN"), with a deviation that does not
    depend on the query, so that it costs nothing.
    """
    lists = trained.assign(sample, coded)
    x = coded if trained.plan.space == "projected" else sample
    values, vectors = np.linalg.eigh(moment)
    root = (vectors * np.sqrt(np.maximum(values, 0))).astype(np.float32)
    squares = np.empty(len(x), np.float32)
    for start in range(0, len(x), AT_ONCE):
        some = slice(start, start + AT_ONCE)
        away = (x[some] - trained.centroids[lists[some]]) @ root
        squares[some] = np.einsum("nd,nd->n", away, away)
    sums = np.bincount(lists, squares, trained.plan.lists)
    counts = np.bincount(lists, minlength=trained.plan.lists)
    return np.sqrt(sums / np.maximum(counts, 1)).astype(np.float32)


def encoded_index(trained: Trained, coded: np.ndarray, lists: np.ndarray) -> Any:
    """A FAISS index in memory of rows in the space of the codes (n, d) float32, in these lists (n,)
    int64; their numbers are 0 to n - 1."""
    faiss = load_faiss()
    index = trained.empty_index()
    numbers = np.arange(len(coded))
    index.add_core(
        len(coded), faiss.swig_ptr(coded), faiss.swig_ptr(numbers), faiss.swig_ptr(lists)
    )
    return index


def _ranges(coded: np.ndarray) -> np.ndarray:
    low, width = code_ranges(coded)
    return np.stack([low - MARGIN * width, (1 + 2 * MARGIN) * width])

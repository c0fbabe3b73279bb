"""A linear map to fewer dimensions that keeps the inner products of queries with rows.

LeanVec's query-aware dimensionality reduction (Tepper et al., 2024, "LeanVec: Searching vectors
faster by making them fit"), of whose solutions this is the closed form: with S the square root of
the queries' second moment, the error E (<q, x> - <B q, A x>)^2 is that of approximating S x by a
vector of d dimensions, so the best one are the d leading eigenvectors P of S E[x x^T] S. A row
becomes P^T S x, a query P^T S^-1 q. A principal component analysis keeps what the rows vary in;
this one keeps what queries can see of it.
"""

from __future__ import annotations

import numpy as np

# Of the greatest eigenvalue: the least one that queries are taken to have. Where they vary less, S
# cannot be inverted, and rows hardly matter.
RIDGE = 1e-6
MOMENT_ROWS = 32_768  # more rows change their second moment by less than the ridge does


def fit_projection(
    queries: np.ndarray, rows: np.ndarray, dims: int
) -> tuple[np.ndarray, np.ndarray]:
    """Matrices for rows and for queries, (D, dims) float32 both, so that the inner product of a
    projected row and a projected query estimates that of the two with the least mean squared error.

    queries (m, D), rows (n, D): samples, in no order. The first d columns of both are the matrices
    for d dimensions; all D of them change no inner product but by rounding.
    """
    moment = second_moment(queries)
    values, vectors = np.linalg.eigh(moment)
    values = np.maximum(values, values[-1] * RIDGE if values[-1] > 0 else 1.0)
    root = (vectors * np.sqrt(values)) @ vectors.T
    inverse = (vectors / np.sqrt(values)) @ vectors.T
    leading = np.linalg.eigh(root @ second_moment(rows[:MOMENT_ROWS]) @ root)[1][:, ::-1][:, :dims]
    return (root @ leading).astype(np.float32), (inverse @ leading).astype(np.float32)


def second_moment(x: np.ndarray) -> np.ndarray:
    """E[x x^T] of vectors (n, D): (D, D) float64."""
    total = np.zeros((x.shape[1], x.shape[1]))
    for start in range(0, len(x), 4096):  # a block at once as float64
        block = x[start : start + 4096].astype(np.float64)
        total += block.T @ block
    return total / max(1, len(x))

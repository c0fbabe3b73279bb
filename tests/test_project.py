"""The projection that is fitted to queries, against others of as many dimensions."""

from __future__ import annotations

import numpy as np
import pytest

from chiasm.index.build.project import fit_projection, second_moment


def drawn(seed: int = 0, dim: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Queries and rows that vary in different directions, apart from each other."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    scale = np.geomspace(1, 0.05, dim)
    queries = rng.normal(size=(600, dim)) * scale @ turn + rng.normal(size=dim)
    rows = rng.normal(size=(700, dim)) * scale[::-1] + rng.normal(size=dim)
    return queries.astype(np.float32), rows.astype(np.float32)


def error(queries: np.ndarray, rows: np.ndarray, onto_rows, onto_queries) -> float:
    """The mean squared error of the inner products of all queries with all rows."""
    change = np.eye(queries.shape[1]) - onto_queries.astype(float) @ onto_rows.astype(float).T
    return float(np.trace(change @ second_moment(rows) @ change.T @ second_moment(queries)))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dims", [1, 4, 9])
def test_no_other_projection_has_a_smaller_error(seed, dims):
    queries, rows = drawn(seed)
    fitted = fit_projection(queries, rows, dims)
    assert fitted[0].shape == fitted[1].shape == (12, dims)
    least = error(queries, rows, *fitted)
    principal = np.linalg.eigh(second_moment(rows))[1][:, ::-1][:, :dims]
    assert least < 0.9 * error(queries, rows, principal, principal)
    rng = np.random.default_rng(seed)
    for _ in range(20):
        near = [side + 0.02 * rng.normal(size=side.shape) for side in fitted]
        assert least < error(queries, rows, *near)
        other = np.linalg.qr(rng.normal(size=(12, dims)))[0]
        assert least < error(queries, rows, other, other)
    # The least error of any linear map of so few dimensions: what its singular values leave.
    roots = [np.linalg.cholesky(second_moment(side)) for side in (queries, rows)]
    values = np.linalg.svd(roots[0].T @ roots[1], compute_uv=False)
    assert least == pytest.approx((values[dims:] ** 2).sum(), rel=1e-3, abs=1e-9)


def test_the_error_is_that_of_all_pairs():
    queries, rows = drawn()
    onto_rows, onto_queries = fit_projection(queries, rows, 3)
    apart = queries @ rows.T - (queries @ onto_queries) @ (rows @ onto_rows).T
    assert error(queries, rows, onto_rows, onto_queries) == pytest.approx(np.mean(apart**2))


def test_all_dimensions_lose_nothing_and_the_first_are_those_of_fewer():
    queries, rows = drawn()
    whole = fit_projection(queries, rows, 12)
    assert error(queries, rows, *whole) < 1e-8
    for side, fewer in zip(whole, fit_projection(queries, rows, 5), strict=True):
        assert np.array_equal(side[:, :5], fewer)


def test_queries_that_span_little_are_no_division_by_zero():
    _, rows = drawn()
    same = np.tile(rows[:1], (50, 1))
    for queries in (same, np.zeros_like(same)):
        fitted = fit_projection(queries, rows, 3)
        assert all(np.isfinite(side).all() for side in fitted)
    assert error(same, rows, *fit_projection(same, rows, 3)) < 1e-3


def test_a_second_moment_is_summed_in_blocks():
    x = np.random.default_rng(0).normal(size=(9000, 3)).astype(np.float32)
    np.testing.assert_allclose(second_moment(x), x.T.astype(float) @ x / 9000, rtol=1e-6)
    assert np.array_equal(second_moment(x[:0]), np.zeros((3, 3)))

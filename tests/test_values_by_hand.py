"""Numbers of calibration, recall promises and query vectors, against truth computed another way."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from scipy.optimize import minimize

from chiasm.index.build.promise import promised_recall
from chiasm.index.query.calibrate import SHRINK, features, separating_weights
from chiasm.index.query.encode import _given, weighted_sum
from chiasm.pipeline.errors import UsageError


def test_features_of_a_query_are_those_counted_by_hand():
    terms = {"cat": 2.0, "dog": 3.0, "sea": 5.0, "cat dog": 7.0, "dog sea": 4.0}
    scores, other = np.array([0.9, 0.5, 0.25]), np.array([0.1, 0.75, -0.5])
    found = features(scores, {"sea", "cat dog"}, terms, other)
    assert found.tolist() == [0.9, 0.25, 3.0, 4.0, 0.75, -0.5]
    assert features(scores, set(terms), terms, other).tolist() == [0.9, 0.25, 0, 0, 0.75, -0.5]
    none = features(scores[:0], set(), terms, other[:0])
    assert none.tolist() == [-1.0, -1.0, 5.0, 7.0, -1.0, -1.0]


def test_separating_weights_have_the_least_penalised_log_loss():
    rng = np.random.default_rng(3)
    positive = rng.normal(0, 1, (60, 3)) * (1, 5, 0) + (1, 0, 4)
    negative = rng.normal(0, 1, (25, 3)) * (1, 5, 0) + (0, -4, 4)
    x = np.concatenate((positive, negative))
    z = (x[:, :2] - x[:, :2].mean(axis=0)) / x[:, :2].std(axis=0)

    def loss(w: np.ndarray) -> float:
        logits = z @ w[:2] + w[2]
        right, wrong = np.logaddexp(0, -logits[:60]), np.logaddexp(0, logits[60:])
        return float(right.mean() / 2 + wrong.mean() / 2 + SHRINK * (w[:2] ** 2).sum())

    best = minimize(loss, np.zeros(3), tol=1e-12).x[:2] / x[:, :2].std(axis=0)
    found = separating_weights(positive, negative)
    assert found[:2] == pytest.approx(best, rel=1e-3) and found[2] == 0


def test_a_promise_is_the_tolerance_limit_of_means_of_500():
    recalls = [1.0] * 70 + [0.5] * 20 + [float("nan")]
    sample = [*recalls[:-1], 0.0]
    width = 1.645 / math.sqrt(91) + 2.054 / math.sqrt(500)
    limit = statistics.mean(sample) - statistics.stdev(sample) * width
    assert promised_recall(np.array(recalls)) == pytest.approx(limit, abs=1e-12)


def test_a_vector_that_is_given_must_have_the_shape_and_be_a_direction():
    for bad in ([1.0, 2.0], [0.0] * 3, [1.0, np.nan, 0.0], [1.0, np.inf, 0.0], [[1.0, 2.0, 3.0]]):
        with pytest.raises(UsageError, match="query vector"):
            _given(np.array(bad), 3)
    assert _given(np.array([3.0, 0.0, 4.0]), 3) == pytest.approx([0.6, 0, 0.8])


def test_a_weighted_sum_has_length_one_whatever_the_size_of_the_weights():
    vectors = np.eye(3, dtype=np.float32)
    for size in (1e-30, 1.0, 1e30):
        found = weighted_sum(vectors, [3 * size, -4 * size, 0.0], "query")
        assert found == pytest.approx([0.6, -0.8, 0])
    with pytest.raises(UsageError, match="cancel"):
        weighted_sum(vectors[[0, 0]], [1.0, -1.0], "query")

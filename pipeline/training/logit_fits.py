"""Small logistic fits by scipy: a bias, Platt scaling, and conditional logit."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize, root_scalar
from scipy.special import expit, log_expit, log_softmax, logit

RIDGE_OF_SCALE = 2e-3  # of Platt scaling: separable scores get no infinite scale


def fit_bias(logits: np.ndarray, true: np.ndarray) -> float:
    """The d that minimises the mean log loss of logits + d.

    logits (N,) float64, true (N,) bool, some of each. There the mean of sigmoid(logits + d) equals
    the share of true ones; both ends of the bracket are known, so the root is found by `brentq`.
    """
    target = float(np.mean(true))
    least, most = float(np.min(logits)), float(np.max(logits))
    at_target = float(logit(target))
    found = root_scalar(
        lambda d: float(expit(logits + d).mean()) - target,
        bracket=(at_target - most - 1, at_target - least + 1),
        method="brentq",
        xtol=1e-12,
    )
    return float(found.root)


def platt_scale(scores: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    """(b, s) of the log odds b + s x that minimise the mean log loss, true and false ones with
    equal total weight (Platt, 1999), plus RIDGE_OF_SCALE / 2 s^2 in units of the scores' standard
    deviation. scores (N,) float64, true (N,) bool."""
    true = np.asarray(true, dtype=bool)
    sides = (max(1, np.count_nonzero(true)), max(1, np.count_nonzero(~true)))
    weights = np.where(true, 0.5 / sides[0], 0.5 / sides[1])
    signs = np.where(true, 1.0, -1.0)
    deviation = max(float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0, 1e-9)
    x = scores / deviation

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        bias, scale = parameters
        odds = signs * (bias + scale * x)
        slope = -weights * signs * expit(-odds)
        value = -float(weights @ log_expit(odds)) + RIDGE_OF_SCALE / 2 * scale**2
        return value, np.array([slope.sum(), slope @ x + RIDGE_OF_SCALE * scale])

    def curvature(parameters: np.ndarray) -> np.ndarray:
        p = expit(parameters[0] + parameters[1] * x)
        w = weights * p * (1 - p)
        return np.array([[w.sum(), w @ x], [w @ x, w @ (x * x) + RIDGE_OF_SCALE]])

    found = minimize(
        loss, np.zeros(2), jac=True, hess=curvature, method="trust-exact", options={"gtol": 1e-10}
    )
    return float(found.x[0]), float(found.x[1] / deviation)


def fit_conditional_logit(x: np.ndarray, ridge: float = 1e-6) -> np.ndarray:
    """Weights, none below zero, of conditional logit (McFadden, 1974): they maximise the mean log
    probability softmax(x w) of the first of each list, minus ridge / 2 |w|^2 in units of the
    features' standard deviation. By L-BFGS-B.

    x (Q, K, F) float64, the right one at index 0 of K -> (F,) float64.
    """
    centred = x - x.mean(axis=1, keepdims=True)  # what all of a list share has no effect
    deviation = np.sqrt((centred**2).mean(axis=(0, 1))).clip(min=1e-9)
    z = centred / deviation

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        logs = log_softmax(z @ weights, axis=1)  # (Q, K)
        expected = np.einsum("qk,qkf->qf", np.exp(logs), z)
        slope = (expected - z[:, 0]).mean(axis=0) + ridge * weights
        return float(ridge / 2 * weights @ weights - logs[:, 0].mean()), slope

    size = z.shape[-1]
    found = minimize(
        loss, np.zeros(size), jac=True, method="L-BFGS-B", bounds=[(0, None)] * size,
        options={"ftol": 0.0, "gtol": 1e-7, "maxiter": 1000},
    )  # fmt: skip
    return found.x / deviation

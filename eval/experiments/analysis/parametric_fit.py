"""Chinchilla's parametric loss L = E + A / N^a + B / D^b (Hoffmann et al. 2022, approach 3), fitted to runs.

The fit minimizes the Huber loss of the log of the loss, with L-BFGS from a grid of starts. Two corrections are those of Besiroglu
et al. 2024: the Huber losses are summed and divided by the square of their threshold, since a mean of numbers near 1e-6 ends the
optimizer at once; and the optimizer runs until it has converged. N and D are centered, so that it converges in fewer steps.
"""

import dataclasses
import itertools
from typing import Any

import numpy as np
import scipy.optimize

Array = Any
"""An array of float64."""
DELTA = 1e-3
"""Published threshold of the Huber loss: relative errors above it count by their amount, not by their square."""
BEST_STARTS = 4
"""Number of starts, those of the least loss, from which the optimizer runs."""
EXPONENTS, SHARES = (0.1, 0.25, 0.5, 1.0), (0.25, 0.5, 0.75)
"""Grid of the starts: a and b; the share of E in the loss, and that of N's term in the rest, in the middle of the data."""
OPTIONS = {"maxiter": 2_000, "maxfun": 10_000, "ftol": 1e-13, "gtol": 1e-7, "maxcor": 20}
"""Options of L-BFGS. With scipy's defaults it ends at a relative change of 2e-9 of the larger of 1 and the loss."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParametricLoss:
    """The fitted loss."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def __call__(self, sizes: Array, tokens: Array) -> Array:
        """Return the loss of N parameters and D tokens."""
        return self.E + self.A * np.asarray(sizes) ** -self.alpha + self.B * np.asarray(tokens) ** -self.beta

    def gradient(self, sizes: Array, tokens: Array, centers: tuple[float, float]) -> Array:
        """Return the derivatives of the log loss, [runs, 5], for log E, the logs of both terms at the centers, a and b."""
        x, y = np.log(sizes) - centers[0], np.log(tokens) - centers[1]
        terms = np.stack(
            [np.full_like(x, self.E), self.A * np.asarray(sizes) ** -self.alpha, self.B * np.asarray(tokens) ** -self.beta], -1
        )
        shares = terms / terms.sum(-1, keepdims=True)
        return np.stack([*shares.T, -shares[:, 1] * x, -shares[:, 2] * y], -1)

    @property
    def exponent(self) -> float:
        """Return the exponent of N_opt over C for C = 6 N D: b / (a + b)."""
        return self.beta / (self.alpha + self.beta)


def fit_parametric_loss(sizes: Array, tokens: Array, losses: Array, delta: float = DELTA) -> ParametricLoss:
    """Return the fit to runs of N parameters, D tokens and their losses, [runs] each.

    Args:
        delta: threshold of the Huber loss. One above all relative errors gives least squares.
    """
    x, y = np.log(np.asarray(sizes, np.float64)), np.log(np.asarray(tokens, np.float64))
    centers, target = (x.mean(), y.mean()), np.log(np.asarray(losses, np.float64))
    x, y = x - centers[0], y - centers[1]
    starts = _starts(float(target.mean()))
    values = [_huber(parameters, x, y, target, delta)[0] for parameters in starts]
    starts = [starts[i] for i in np.argsort(values, kind="stable")[:BEST_STARTS]]
    fits = [
        scipy.optimize.minimize(_huber, parameters, (x, y, target, delta), "L-BFGS-B", jac=True, bounds=_BOUNDS, options=OPTIONS)
        for parameters in starts
    ]
    e, a, b, alpha, beta = min(fits, key=lambda fit: fit.fun).x
    return ParametricLoss(
        E=float(np.exp(e)),
        A=float(np.exp(a + alpha * centers[0])),
        B=float(np.exp(b + beta * centers[1])),
        alpha=float(alpha),
        beta=float(beta),
    )


def prediction_weights(loss: ParametricLoss, runs: tuple[Array, Array], others: tuple[Array, Array]) -> Array:
    """Return the derivatives, [others, runs], of the log losses predicted for others for the log losses of the fitted runs.

    They are those of least squares at its minimum (Gauss and Newton), so the fit needs a threshold above the errors of the runs.

    Args:
        runs, others: (N, D), arrays of one length.
    """
    centers = float(np.log(runs[0]).mean()), float(np.log(runs[1]).mean())
    return loss.gradient(*others, centers) @ np.linalg.pinv(loss.gradient(*runs, centers), rcond=1e-9)


_BOUNDS = ((-30.0, 10.0), (-30.0, 10.0), (-30.0, 10.0), (1e-3, 5.0), (1e-3, 5.0))
"""Bounds of log E, of the logs of both terms in the middle of the data, and of a and b: beyond them a term is absent."""


def _starts(level: float) -> list[Array]:
    """Return the starts for data with this mean of the log loss."""
    return [
        np.array([level + np.log(share), level + np.log((1 - share) * part), level + np.log((1 - share) * (1 - part)), a, b])
        for share, part, a, b in itertools.product(SHARES, SHARES, EXPONENTS, EXPONENTS)
    ]


def _huber(parameters: Array, x: Array, y: Array, target: Array, delta: float) -> tuple[float, Array]:
    """Return the sum of the Huber losses over the square of the threshold, and its gradient."""
    e, a, b, alpha, beta = parameters
    terms = np.stack([np.full_like(x, e), a - alpha * x, b - beta * y])  # [3, runs]
    top = terms.max(0)
    parts = np.exp(terms - top)
    total = parts.sum(0)
    residuals = (top + np.log(total) - target) / delta
    clipped = np.clip(residuals, -1, 1)
    shares = parts / total * (clipped / delta)  # [3, runs]
    gradient = np.array([*shares.sum(1), -(shares[1] @ x), -(shares[2] @ y)])
    return float((clipped * (residuals - clipped / 2)).sum()), gradient

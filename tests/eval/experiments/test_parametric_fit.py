"""Chinchilla's parametric loss: published parameters that are put into synthetic losses come out again."""

from typing import Any

import numpy as np
import pytest

from eval.experiments.analysis import parametric_fit
from eval.experiments.analysis.parametric_fit import ParametricLoss, fit_parametric_loss, prediction_weights

HOFFMANN = ParametricLoss(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)
BESIROGLU = ParametricLoss(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)


def published_runs(count: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Return N and D of runs at 6e18 to 3e21 FLOPs, as in the paper."""
    flops = np.geomspace(6e18, 3e21, count)[:, None]
    sizes = np.sqrt(flops / 120) * np.geomspace(0.1, 10, count)
    return sizes.ravel(), (flops / 6 / sizes).ravel()


@pytest.mark.parametrize("true", [HOFFMANN, BESIROGLU], ids=["Hoffmann", "Besiroglu"])
def test_published_parameters_are_recovered(true: ParametricLoss) -> None:
    sizes, tokens = published_runs()
    fitted = fit_parametric_loss(sizes, tokens, true(sizes, tokens))
    for name in ("E", "A", "B", "alpha", "beta"):
        assert getattr(fitted, name) == pytest.approx(getattr(true, name), rel=1e-3)
    noisy = true(sizes, tokens) * np.exp(0.003 * np.random.default_rng(0).normal(size=sizes.shape))
    assert fit_parametric_loss(sizes, tokens, noisy).exponent == pytest.approx(true.exponent, abs=0.02)


@pytest.mark.planted
def test_a_mean_of_huber_losses_ends_the_optimizer_before_it_has_converged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hoffmann et al. averaged the losses, and their optimizer stopped early (Besiroglu et al. 2024)."""
    sizes, tokens = published_runs()
    huber = parametric_fit._huber

    def mean_huber(*arguments: Any) -> tuple[float, np.ndarray]:
        scale = parametric_fit.DELTA**2 / len(sizes)
        value, gradient = huber(*arguments)
        return value * scale, gradient * scale

    monkeypatch.setattr(parametric_fit, "_huber", mean_huber)
    monkeypatch.setattr(parametric_fit, "OPTIONS", {})
    fitted = fit_parametric_loss(sizes, tokens, HOFFMANN(sizes, tokens))
    assert abs(fitted.A / HOFFMANN.A - 1) > 0.05


def test_a_run_that_did_not_learn_hardly_changes_the_fit() -> None:
    sizes, tokens = published_runs()
    losses = HOFFMANN(sizes, tokens)
    losses[3] *= 1.5
    assert fit_parametric_loss(sizes, tokens, losses).exponent == pytest.approx(HOFFMANN.exponent, abs=0.005)


def test_weights_of_a_prediction_are_derivatives() -> None:
    sizes, tokens = published_runs(4)
    losses = HOFFMANN(sizes, tokens) * np.exp(0.003 * np.random.default_rng(0).normal(size=sizes.shape))
    others = np.array([1e10, 3e10]), np.array([5e11, 2e11])
    fitted = fit_parametric_loss(sizes, tokens, losses, 0.05)
    weights = prediction_weights(fitted, (sizes, tokens), others)
    for run in (0, 6, 13):
        changed = losses.copy()
        changed[run] *= 1 + 1e-3
        moved = np.log(fit_parametric_loss(sizes, tokens, changed, 0.05)(*others) / fitted(*others)) / 1e-3
        np.testing.assert_allclose(weights[:, run], moved, rtol=0.15, atol=0.02)

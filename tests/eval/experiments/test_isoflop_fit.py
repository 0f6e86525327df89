"""Exponents from curves of equal FLOPs: rates of false verdicts and power, on grids whose exponent is known."""

import numpy as np
import pytest

from eval.experiments.analysis import isoflop_fit
from eval.experiments.analysis.isoflop_fit import Curve
from eval.experiments.analysis.significance_tests import LEVEL
from tests.support.scaling_grids import (
    BUDGETS,
    exponents_of_grids,
    log_sizes_around,
    loss_with_optimum,
    parabolic_losses,
)

TRUE = 0.5
GRIDS = 4_000
SLACK = 0.01
"""Three standard errors of a rate of 5 % in so many grids, both tails."""


def even(deviation: float) -> np.ndarray:
    return np.full((len(BUDGETS), 5), deviation)


def false_rate(estimate: isoflop_fit.Estimate, exponent: float) -> float:
    """Return the rate of "below the true exponent" at one level and "above it" at the other, of the worse side."""
    below, above = estimate.p_below(exponent), estimate.p_above(exponent)
    return max(float(((below <= LEVEL) | (above <= LEVEL)).mean()), float(((above <= LEVEL) | (below <= LEVEL)).mean()))


@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
@pytest.mark.parametrize("deviation", [0.005, 0.03])
@pytest.mark.parametrize("curve", ["parabola", "Chinchilla", "asymmetric", "off-center"])
def test_false_verdicts_on_the_true_exponent_are_at_most_5_percent(seeds: int, deviation: float, curve: str) -> None:
    if curve == "parabola":
        exponent, sizes = TRUE, log_sizes_around(TRUE)
        losses = parabolic_losses(sizes, TRUE)
    else:
        loss = loss_with_optimum(0.2, 0.4) if curve == "asymmetric" else loss_with_optimum(0.34, 0.28)
        shifts = (0.4, 0.2, -0.2, -0.4) if curve == "off-center" else ()
        exponent, sizes = loss.exponent, log_sizes_around(loss.exponent, shifts=shifts)
        losses = loss(np.exp(sizes), np.array(BUDGETS)[:, None] / 6 / np.exp(sizes))
    estimate = exponents_of_grids(sizes, losses, even(deviation), seeds=seeds)
    assert false_rate(estimate, exponent) < 2 * LEVEL + SLACK
    # The bias by curves that are no parabolas is small.
    assert abs(float(estimate.value.mean()) - exponent) < max(0.002, 0.25 * float(estimate.value.std()))


UNEVEN = {
    "noisier small sizes": np.tile(np.geomspace(0.03, 0.003, 5), (4, 1)),
    "noisier small budgets": np.tile(np.geomspace(0.03, 0.003, 4)[:, None], (1, 5)),
    **{f"one noisy cell, {i}": np.where(np.arange(20).reshape(4, 5) == i, 0.05, 0.005) for i in (0, 4, 15, 19)},
}


@pytest.mark.planted
@pytest.mark.parametrize("name", UNEVEN)
def test_cells_with_ten_times_the_noise_of_others_give_no_more_false_verdicts(name: str) -> None:
    sizes = log_sizes_around(TRUE)
    losses, deviations = parabolic_losses(sizes, TRUE), UNEVEN[name]
    assert deviations.max() == pytest.approx(10 * deviations.min())
    rate = false_rate(exponents_of_grids(sizes, losses, deviations, seeds=3), TRUE)
    assert rate < 2 * LEVEL + SLACK
    # The pooled variance alone does not keep the level.
    mistake = exponents_of_grids(sizes, losses, deviations, seeds=3, pooled=True)
    assert false_rate(mistake, TRUE) > 1.5 * rate and ("one" not in name or false_rate(mistake, TRUE) > 0.2)


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("deviation", [0.005, 0.02])
def test_the_power_is_as_stated(seeds: int, deviation: float) -> None:
    """The detectable distance is that of a typical grid: of the median error and degrees of freedom."""
    sizes = log_sizes_around(TRUE)
    estimate = exponents_of_grids(sizes, parabolic_losses(sizes, TRUE), even(deviation), seeds=seeds)
    typical = isoflop_fit.Estimate(value=np.float64(0), error=np.median(estimate.error), degrees=np.median(estimate.degrees))
    level = LEVEL / 4
    distance = typical.detectable(level)
    assert float((estimate.p_below(TRUE + distance) <= level).mean()) == pytest.approx(0.8, abs=0.03 + SLACK)


def test_weights_are_derivatives() -> None:
    rng = np.random.default_rng(0)
    x, step = np.log([1e4, 2e4, 5e4, 7e4, 2e5]), 1e-6
    means = 2.7 + 0.1 * (x - 10.8) ** 2 + 0.01 * rng.normal(size=5)
    parabola = isoflop_fit.fit_parabola(Curve(log_sizes=x, means=means))
    changed = isoflop_fit.fit_parabola(Curve(log_sizes=x, means=means + step * np.eye(5)))
    for name in ("minimum", "loss"):
        weights = (getattr(changed, name) - getattr(parabola, name)) / step
        np.testing.assert_allclose(getattr(parabola, f"{name}_weights"), weights, rtol=1e-4, atol=1e-6)
    for end in (0, 1):
        np.testing.assert_allclose(
            parabola.slope_weights[end], (changed.slopes[end] - parabola.slopes[end]) / step, rtol=1e-4, atol=1e-8
        )
    inner, slope = np.linspace(x[0], x[-1], 4001), np.polyfit(x, means, 2)
    assert parabola.minimum == pytest.approx(inner[np.polyval(slope, inner).argmin()], abs=1e-3)
    assert parabola.loss == pytest.approx(np.polyval(slope, inner).min(), abs=1e-6)


def inner_p_of_grids(optimum: float, *, grids: int = 4_000) -> tuple[np.ndarray, np.ndarray]:
    """Return the p values of an inner minimum and of its opposite for random curves with an optimum at a log size."""
    rng = np.random.default_rng(2)
    x = np.log(2.0) * np.arange(5)
    runs = 2.7 + 0.1 * (x - optimum)[:, None] ** 2 + 0.02 * rng.normal(size=(grids, 5, 3))
    curve = Curve(log_sizes=x, means=runs.mean(-1))
    parabola = isoflop_fit.fit_parabola(curve)
    noise = isoflop_fit.estimate_noise(runs.var(-1, ddof=1), np.full(5, 3), [parabola])
    first, last = (noise.of(*pair) for pair in zip(parabola.slopes, parabola.slope_weights, strict=True))
    return isoflop_fit.inner_minimum_p(curve, parabola, (first, last))


def test_a_minimum_at_an_end_is_no_inner_one() -> None:
    p, opposite = inner_p_of_grids(0.0)
    assert (p <= LEVEL).mean() <= LEVEL and (opposite <= LEVEL).mean() <= LEVEL
    p, opposite = inner_p_of_grids(1.4)
    assert (p <= LEVEL).mean() > 0.95 and (opposite <= LEVEL).mean() == 0
    p, opposite = inner_p_of_grids(-1.4)
    assert (p <= LEVEL).mean() == 0 and (opposite <= LEVEL).mean() > 0.8


@pytest.mark.planted
def test_a_parabola_with_a_vertex_inside_does_not_outweigh_the_least_mean_at_an_end() -> None:
    """Losses that level off have a parabola with a maximum, or with a vertex inside, though the smallest size is the best."""
    x = np.log(2.0) * np.arange(5)
    curve = Curve(log_sizes=x, means=np.array([2.50, 2.501, 2.502, 2.7, 3.4]))
    parabola = isoflop_fit.fit_parabola(curve)
    assert x[0] < parabola.minimum < x[-1]
    noise = isoflop_fit.estimate_noise(np.full(5, 1e-8), np.full(5, 3), [parabola])
    slopes = tuple(noise.of(*pair) for pair in zip(parabola.slopes, parabola.slope_weights, strict=True))
    assert isoflop_fit.inner_minimum_p(curve, parabola, slopes)[0] == 1.0  # type: ignore[arg-type]


def test_three_of_four_hypotheses_need_the_third_p_value() -> None:
    p = np.array([0.5, 0.001, 0.002, 0.01])
    assert isoflop_fit.partial_conjunction_p(p, 3) == pytest.approx(0.02)
    assert isoflop_fit.partial_conjunction_p(p, 4) == pytest.approx(0.5)
    assert isoflop_fit.partial_conjunction_p(p, 1) == pytest.approx(0.004)

"""Optimal sizes from curves of equal FLOPs: a parabola over log N at each budget (Hoffmann et al. 2022, approach 2).

The exponent of N_opt over C is the slope of the minima over log C. Everything that is estimated here is a smooth function of the
mean losses of the cells (a budget and a size), so that its error follows from the variances of the means and from its weights:
its derivative for each mean (delta method). The variance of a mean has two parts:

- Noise of seeds: the larger of the cell's own variance and the pooled one of all cells, over the number of seeds. The pooled
  variance alone gives more than 10 % false verdicts if one cell has ten times the noise of the others.
- Model error: what the residuals of the parabolas have in excess of that noise (lack of fit), of all budgets together.

The degrees of freedom of Student's t are those of Welch and Satterthwaite, with caution. All functions accept leading axes, so
that a simulation of many grids is one call. `tests/eval/experiments/test_isoflop_fit.py` has the rates of false verdicts.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.optimize
import scipy.special

Array = Any
"""An array of float64."""
PARABOLA = 3
"""Number of parameters of a parabola."""
CAUTION = 0.5
"""Factor of the degrees of freedom of variances over seeds. If one cell has ten times the noise of the others, its variance from
three seeds is sometimes far too small, and then so is the error: with a factor of 1 that gives 7 % false verdicts, not 5 %."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """An estimated number with the standard error and the degrees of freedom of its Student's t."""

    value: Array
    error: Array
    degrees: Array

    def minus(self, target: "float | Estimate") -> "Estimate":
        """Return the estimate of the difference to a number, or to an independent estimate (Welch and Satterthwaite)."""
        if not isinstance(target, Estimate):
            return dataclasses.replace(self, value=self.value - target)
        variances = self.error**2, target.error**2
        degrees = sum(variances) ** 2 / (variances[0] ** 2 / self.degrees + variances[1] ** 2 / target.degrees)
        return Estimate(value=self.value - target.value, error=np.sqrt(sum(variances)), degrees=degrees)

    def p_below(self, limit: float) -> Array:
        """Return the one-sided p value of "the true value is below `limit`"."""
        return scipy.special.stdtr(self.degrees, (self.value - limit) / self.error)

    def p_above(self, limit: float) -> Array:
        """Return the one-sided p value of "the true value is above `limit`"."""
        return scipy.special.stdtr(self.degrees, (limit - self.value) / self.error)

    def half_width(self, confidence: float) -> Array:
        """Return the distance from the value to its one-sided bound."""
        return scipy.special.stdtrit(self.degrees, confidence) * self.error

    def interval(self, confidence: float = 0.95) -> tuple[Array, Array]:
        """Return the two-sided interval."""
        half = self.half_width((1 + confidence) / 2)
        return self.value - half, self.value + half

    def detectable(self, level: float, chance: float = 0.8) -> float:
        """Return the distance from a limit that a one-sided test at a level shows with a chance; only without leading axes."""
        return float(self.error) * _noncentrality(float(self.degrees), level, chance)


@functools.lru_cache(maxsize=256)
def _noncentrality(degrees: float, level: float, chance: float) -> float:
    from scipy import stats  # takes longer to import than JAX

    limit = scipy.special.stdtrit(degrees, 1 - level)
    root: Any = scipy.optimize.brentq(lambda center: stats.nct.sf(limit, degrees, center) - chance, 0.0, 4.0 * limit + 10.0)
    return float(root)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """The mean losses of the sizes of one budget."""

    log_sizes: Array
    """[J], increasing."""
    means: Array
    """[..., J]"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parabola:
    """The parabola of a curve. Weights are derivatives for the mean loss of each size, [..., J]."""

    coefficients: Array
    """[..., 3]: of (x - center)^2, of x - center, and the constant."""
    center: float
    minimum: Array
    """[...]: log of the size of least loss; infinite or a maximum if the curvature is not positive."""
    minimum_weights: Array
    loss: Array
    """[...]: the loss at the minimum."""
    loss_weights: Array
    slopes: tuple[Array, Array]
    """Slope at the smallest and at the largest size, [...]."""
    slope_weights: tuple[Array, Array]
    residuals: Array
    """[..., J]"""


def fit_parabola(curve: Curve) -> Parabola:
    """Return the least-squares parabola of a curve."""
    center = float(curve.log_sizes.mean())
    x = curve.log_sizes - center
    powers = np.vander(x, PARABOLA)  # [J, 3]
    solve = np.linalg.pinv(powers)  # [3, J]
    coefficients = curve.means @ solve.T
    a, b, c = (coefficients[..., i] for i in range(PARABOLA))
    with np.errstate(divide="ignore", invalid="ignore"):
        place = -b / (2 * a)
        minimum_weights = (-1 / (2 * a))[..., None] * solve[1] + (b / (2 * a**2))[..., None] * solve[0]
        loss = c - b**2 / (4 * a)
        # The derivative for the place of the minimum is zero, so the loss has that of the parabola at a fixed place.
        loss_weights = place[..., None] ** 2 * solve[0] + place[..., None] * solve[1] + solve[2]
    ends = (x[0], x[-1])
    return Parabola(
        coefficients=coefficients,
        center=center,
        minimum=place + center,
        minimum_weights=minimum_weights,
        loss=loss,
        loss_weights=loss_weights,
        slopes=(b + 2 * a * ends[0], b + 2 * a * ends[1]),
        slope_weights=(solve[1] + 2 * ends[0] * solve[0], solve[1] + 2 * ends[1] * solve[0]),
        residuals=curve.means - coefficients @ powers.T,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Noise:
    """The variances of the mean losses of all cells, in the order of the budgets and of their sizes."""

    variances: Array
    """[..., cells]: variance of a mean over seeds."""
    degrees: Array
    """[cells]: degrees of freedom of each variance."""
    model: Array
    """[...]: variance of a mean by model error; for one seed a cell, all of its variance."""
    model_degrees: int
    """Degrees of freedom of the residuals of the parabolas."""
    pooled: Array
    """[...]: variance of one run; NaN for one seed a cell."""

    def of(self, value: Array, weights: Array) -> Estimate:
        """Return the estimate of a value with its weights, [..., cells]."""
        own = weights**2 * self.variances
        model = (weights**2).sum(-1) * self.model
        total = own.sum(-1) + model
        with np.errstate(divide="ignore", invalid="ignore"):
            degrees = total**2 / ((own**2 / (CAUTION * self.degrees)).sum(-1) + model**2 / self.model_degrees)
        return Estimate(value=value, error=np.sqrt(total), degrees=degrees)


def estimate_noise(variances: Array, counts: Array, parabolas: Sequence[Parabola]) -> Noise:
    """Return the noise of the means of all cells.

    Args:
        variances: [..., cells], sample variance over the seeds of a cell; that of a single seed is ignored.
        counts: [cells], number of seeds.
        parabolas: of all budgets, in the order of the cells; together they have more sizes than parameters.
    """
    residuals = np.concatenate([parabola.residuals for parabola in parabolas], -1)
    model_degrees = residuals.shape[-1] - PARABOLA * len(parabolas)
    assert model_degrees > 0
    seeds = len(counts) / (1 / counts).sum()  # harmonic mean
    of_fit = seeds * (residuals**2).sum(-1) / model_degrees
    degrees = counts - 1
    if not degrees.sum():
        none = np.zeros_like(residuals)
        return Noise(
            variances=none,
            degrees=np.ones_like(counts),
            model=of_fit,
            model_degrees=model_degrees,
            pooled=np.full_like(of_fit, np.nan),
        )
    pooled = (np.where(degrees > 0, variances, 0.0) * degrees).sum(-1) / degrees.sum()
    larger = np.where(degrees > 0, np.maximum(variances, pooled[..., None]), pooled[..., None])
    return Noise(
        variances=larger / counts,
        degrees=np.maximum(degrees, 1),
        model=np.maximum(0.0, of_fit - pooled) / seeds,
        model_degrees=model_degrees,
        pooled=pooled,
    )


def inner_minimum_p(curve: Curve, parabola: Parabola, slopes: tuple[Estimate, Estimate]) -> tuple[Array, Array]:
    """Return the p values of "the best size is neither the smallest nor the largest" and of its opposite.

    The loss must fall at the smallest size and rise at the largest: both tests must pass, and the p value is the greater one
    (Berger 1982). It is 1 if the smallest mean is at an end, whatever the parabola says. The opposite is that it rises at the
    smallest size, or falls at the largest: the smaller p value, doubled.
    """
    best = curve.means.argmin(-1)
    at_end = (best == 0) | (best == len(curve.log_sizes) - 1)
    p = np.maximum(slopes[0].p_below(0.0), slopes[1].p_above(0.0))
    opposite = np.minimum(1.0, 2 * np.minimum(slopes[0].p_above(0.0), slopes[1].p_below(0.0)))
    # A slope of the wrong sign at an end without the least mean there is a property of the parabola.
    return np.where(at_end | (parabola.coefficients[..., 0] <= 0), 1.0, p), np.where(at_end, opposite, 1.0)


def partial_conjunction_p(p: Array, needed: int) -> Array:
    """Return the p value of "at least `needed` of the hypotheses along the last axis hold" (Benjamini and Heller 2008)."""
    p = np.sort(np.asarray(p, np.float64), -1)
    return np.minimum(1.0, (p.shape[-1] - needed + 1) * p[..., needed - 1])


def exponent_weights(log_flops: Array) -> Array:
    """Return the weights [K] with which the minima enter the slope of log N_opt over log C."""
    centered = log_flops - log_flops.mean()
    return centered / (centered**2).sum()


def fit_exponent(log_flops: Array, parabolas: Sequence[Parabola], use: Sequence[bool]) -> tuple[Array, Array]:
    """Return the exponent of N_opt over C, [...], and its weights, [..., cells].

    Args:
        log_flops: [K], log of the FLOPs of each budget.
        use: whether the minimum of a budget is used; the others have the weight 0.
    """
    slopes = np.zeros(len(parabolas))
    slopes[np.array(use)] = exponent_weights(np.asarray(log_flops)[np.array(use)])
    value: Array = 0.0
    weights = []
    for slope, parabola, used in zip(slopes, parabolas, use, strict=True):
        value = value + (slope * parabola.minimum if used else 0.0)
        weights.append(slope * parabola.minimum_weights if used else np.zeros_like(parabola.residuals))
    return value, np.concatenate(weights, -1)

"""Significance tests over seeds: paired or Welch's t, Holm's correction, equivalence, detectable effects; and over items.

Values lie along the last axis, one for each seed; leading axes are independent experiments, so that a simulation is one call. A
difference is always the mean of `row` minus the mean of `reference`. Sources: Student 1908; Welch 1947; Holm 1979; Schuirmann
1987 (two one-sided tests); McNemar 1947; Efron 1979 (bootstrap).
"""

import dataclasses
import functools
from typing import Any

import numpy as np
import scipy.optimize
import scipy.special

Array = Any
"""A number or an array of float64."""
NODES = 64
"""Nodes of the quadrature over the split of the variance between two rows; 32 give the same six digits."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """The difference between two rows over seeds, with its standard error."""

    test: str
    """The name of the test: "paired" or "welch"."""
    estimate: Array
    """Mean of the row minus mean of the reference."""
    error: Array
    """Standard error of the estimate."""
    degrees: Array
    """Degrees of freedom of Student's t: n - 1 for pairs, those of Welch and Satterthwaite for independent rows."""
    unit: Array
    """Standard deviation of a difference of one seed (paired), or the root mean square of those of the rows (Welch)."""
    counts: tuple[int, int]
    """Seeds of the row and of the reference; equal if paired."""

    def p_below(self, value: float = 0.0) -> Array:
        """Return the one-sided p value of "the true difference is below `value`"."""
        return scipy.special.stdtr(self.degrees, (self.estimate - value) / self.error)

    def p_above(self, value: float = 0.0) -> Array:
        """Return the one-sided p value of "the true difference is above `value`"."""
        return scipy.special.stdtr(self.degrees, (value - self.estimate) / self.error)

    def p_within(self, margin: float) -> Array:
        """Return the p value of "the true difference is within +-margin": the greater of two one-sided tests (TOST)."""
        return np.maximum(self.p_below(margin), self.p_above(-margin))

    def p_beyond(self, margin: float) -> Array:
        """Return the one-sided p value of "the true difference is beyond the margin", on the side of the estimate."""
        return np.minimum(self.p_below(-margin), self.p_above(margin))

    def half_width(self, confidence: float = 0.95) -> Array:
        """Return the distance from the estimate to its one-sided bound."""
        return scipy.special.stdtrit(self.degrees, confidence) * self.error


def paired_difference(row: Array, reference: Array) -> Difference:
    """Return the difference seed by seed; both are [..., n] with n >= 2, in the same order of seeds."""
    row, reference = np.asarray(row, np.float64), np.asarray(reference, np.float64)
    assert row.shape[-1] == reference.shape[-1] >= 2
    count, differences = row.shape[-1], row - reference
    deviation = np.sqrt(_variance(differences))
    return Difference(
        test="paired",
        estimate=differences.mean(-1),
        error=deviation / np.sqrt(count),
        degrees=np.float64(count - 1),
        unit=deviation,
        counts=(count, count),
    )


def welch_difference(row: Array, reference: Array) -> Difference:
    """Return the difference between independent rows, [..., n] and [..., m] with n, m >= 2, whose variances may differ."""
    row, reference = np.asarray(row, np.float64), np.asarray(reference, np.float64)
    counts = row.shape[-1], reference.shape[-1]
    assert min(counts) >= 2
    variances = _variance(row), _variance(reference)
    first, second = variances[0] / counts[0], variances[1] / counts[1]
    with np.errstate(invalid="ignore", divide="ignore"):
        degrees = (first + second) ** 2 / (first**2 / (counts[0] - 1) + second**2 / (counts[1] - 1))
    return Difference(
        test="welch",
        estimate=row.mean(-1) - reference.mean(-1),
        error=np.sqrt(first + second),
        degrees=degrees,
        unit=np.sqrt((variances[0] + variances[1]) / 2),
        counts=counts,
    )


def _variance(values: Array) -> Array:
    """Return the sample variance of [..., n] values; exactly 0 for equal ones, whose computed mean may differ from them."""
    return (values - values[..., :1]).var(-1, ddof=1)


def mean_and_half_width(values: Array, confidence: float = 0.95) -> tuple[float, float | None]:
    """Return the mean of [n] values and half the width of its two-sided interval; None for a single value."""
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return float(values.mean()), None
    error = np.sqrt(_variance(values) / len(values))
    return float(values.mean()), float(scipy.special.stdtrit(len(values) - 1, (1 + confidence) / 2) * error)


def difference_from_constant(values: Array, value: float) -> Difference:
    """Return the difference between [..., n] values, n >= 2, and a constant."""
    values = np.asarray(values, np.float64)
    return dataclasses.replace(paired_difference(values, np.full_like(values, value)), test="one sample")


def seed_correlation(row: Array, reference: Array) -> float | None:
    """Return the correlation of two rows over the seeds that they share; None below three seeds and without variance."""
    row, reference = np.asarray(row, np.float64), np.asarray(reference, np.float64)
    if len(row) < 3 or not row.std() or not reference.std():
        return None
    return float(np.corrcoef(row, reference)[0, 1])


def holm_adjusted(p: Array) -> Array:
    """Return p values [..., claims] adjusted so that the chance of any false rejection stays below the level."""
    p = np.asarray(p, np.float64)
    order = np.argsort(p, -1)
    factors = np.arange(p.shape[-1], 0, -1)
    stepped = np.minimum(1.0, np.maximum.accumulate(np.take_along_axis(p, order, -1) * factors, -1))
    adjusted = np.empty_like(stepped)
    np.put_along_axis(adjusted, order, stepped, -1)
    return adjusted


def test_power(effect: float, counts: tuple[int, int], *, alpha: float, is_paired: bool) -> float:
    """Return the chance that a one-sided test finds an effect.

    The test of pairs has a noncentral t. For independent rows of equal variance, the sum of squares and its share B of the first
    row are independent, and B has a beta distribution. B determines the degrees of Welch, and the statistic divided by a function
    of B has a noncentral t: the power is an integral over B, computed by Gauss-Jacobi quadrature.

    Args:
        effect: standard deviations of a difference of one seed (paired), or of one row.
        counts: seeds of both rows; a pair uses the first.
        alpha: level of the test, for Holm's first step divided by the number of claims.
    """
    first, second = counts
    if is_paired:
        return float(_t_tail(scipy.special.stdtrit(first - 1, 1 - alpha), first - 1, effect * np.sqrt(first)))
    degrees = first + second - 2
    nodes, weights = scipy.special.roots_jacobi(NODES, (second - 1) / 2 - 1, (first - 1) / 2 - 1)
    share = (1 + nodes) / 2
    of_first, of_second = share / (first * (first - 1)), (1 - share) / (second * (second - 1))
    of_welch = (of_first + of_second) ** 2 / (of_first**2 / (first - 1) + of_second**2 / (second - 1))
    variance = 1 / first + 1 / second
    limits = scipy.special.stdtrit(of_welch, 1 - alpha) * np.sqrt(degrees * (of_first + of_second) / variance)
    return float(weights @ _t_tail(limits, degrees, effect / np.sqrt(variance)) / weights.sum())


def _t_tail(limit: Array, degrees: int, center: float) -> Array:
    from scipy import stats  # takes longer to import than JAX

    return stats.nct.sf(limit, degrees, center)


@functools.lru_cache(maxsize=1024)
def smallest_effect(
    counts: tuple[int, int], *, claims: int = 1, alpha: float = 0.05, chance: float = 0.8, is_paired: bool = False
) -> float:
    """Return the smallest effect, in the units of `test_power`, that a one-sided test finds with a chance.

    Args:
        claims: claims that share the level: the effect is that of Holm's first step, in which the level is divided by them.
    """
    level = alpha / claims

    def lacking(effect: float) -> float:
        return test_power(effect, counts, alpha=level, is_paired=is_paired) - chance

    high = 1.0
    while lacking(high) < 0:
        high *= 2
    root: Any = scipy.optimize.brentq(lacking, 0.0, high, xtol=1e-9)
    return float(root)


def smallest_margin(counts: tuple[int, int], *, claims: int = 1, alpha: float = 0.05, is_paired: bool = False) -> float:
    """Return a margin at which two equal rows are called equivalent with a chance of at least 80%, in the units of `test_power`.

    Each of the two tests passes in 90% of the cases, so both do in at least 80% (Bonferroni), and in little more.
    """
    return smallest_effect(counts, claims=claims, alpha=alpha, chance=0.9, is_paired=is_paired)


def mcnemar(row: Array, reference: Array) -> float:
    """Return the exact two-sided p value of "the two differ", from which of the same [items] each has right (McNemar)."""
    row, reference = np.asarray(row, bool), np.asarray(reference, bool)
    from scipy import stats

    gained, lost = int((row & ~reference).sum()), int((reference & ~row).sum())
    return 1.0 if gained + lost == 0 else float(stats.binomtest(gained, gained + lost).pvalue)


@dataclasses.dataclass(frozen=True)
class ErrorParts:
    """Standard errors of a difference, by what was sampled."""

    items: float
    """If other items were sampled, with the same seeds."""
    seeds: float
    """If other seeds were sampled, with the same items."""


def error_parts(row: Array, reference: Array, *, samples: int = 2000, seed: int = 0) -> ErrorParts:
    """Return the parts of the error of a mean difference over outcomes [seeds, items] of the same items.

    Items are resampled within seeds (bootstrap), the same items for all seeds. Over seeds the error is that of Student's t.
    """
    differences = np.asarray(row, np.float64) - np.asarray(reference, np.float64)
    seeds, items = differences.shape
    of_items = differences.mean(0)
    # The counts of n items in a sample with replacement are multinomial: no [samples, items] indices are needed.
    counts = np.random.default_rng(seed).multinomial(items, np.full(items, 1 / items), samples)
    return ErrorParts(
        items=float((counts @ of_items / items).std(ddof=1)), seeds=float(differences.mean(1).std(ddof=1) / np.sqrt(seeds))
    )

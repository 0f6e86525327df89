"""Significance tests over seeds, Holm's correction, equivalence, power and planning; and the error over items.

Values lie along the last axis, one for each seed; leading axes are independent experiments, so that a simulation is one call. A
difference is always the mean of `row` minus the mean of `reference`. Sources: Student 1908; Welch 1947; Holm 1979; Schuirmann
1987 (two one-sided tests); Satterthwaite 1946; Fisher 1935 and Clopper and Pearson 1934 (shares); Lan and DeMets 1983
(looks); Sellam et al. 2022 (seeds and items).
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.optimize
import scipy.special

from eval.experiments.declaration import FEWEST_SEEDS
from zoo.errors import BadInput

Array = Any
"""A number or an array of float64."""
LEVEL = 0.025
"""Level of each of the two families of one-sided tests; their sum is the highest chance of a false verdict."""
ROUNDING = 1e-12
"""Standard deviation of values that are equal but for rounding, relative to their size."""
MOST_SEEDS = 1_000
NODES = 128
"""Quantiles of a sample variance over which a power is averaged; 64 give the same three digits."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """The difference between two rows over seeds, with its standard error."""

    test: str
    """The name of the test: "paired", "larger variance", "welch" or "one sample"."""
    estimate: Array
    """Mean of the row minus mean of the reference."""
    error: Array
    """Standard error of the estimate."""
    degrees: Array
    """Degrees of freedom of Student's t."""
    unit: Array
    """Standard deviation that the error is computed from: of a difference of one seed (paired), or the larger one of the rows
    (for Welch, their root mean square)."""
    counts: tuple[int, int]
    """Seeds of the row and of the reference; equal if paired."""

    def p_below(self, value: float = 0.0) -> Array:
        """Return the one-sided p value of "the true difference is below `value`"."""
        return scipy.special.stdtr(self.degrees, (self.estimate - value) / self.error)

    def p_above(self, value: float = 0.0) -> Array:
        """Return the one-sided p value of "the true difference is above `value`"."""
        return scipy.special.stdtr(self.degrees, (value - self.estimate) / self.error)

    def half_width(self, confidence: float = 0.95) -> Array:
        """Return the distance from the estimate to its one-sided bound."""
        return scipy.special.stdtrit(self.degrees, confidence) * self.error

    def with_items(self, error: float, items: int) -> "Difference":
        """Return the difference with a part of its error that is due to the choice of items (Satterthwaite's degrees).

        Args:
            error: standard error over other items with the same seeds.
            items: number of items, above 1 unless the error is 0.
        """
        total, degrees = add_item_error(self.error**2, self.degrees, error, items)
        return dataclasses.replace(self, error=np.sqrt(total), degrees=degrees)


def add_item_error(variance: Array, degrees: Array, error: float, items: int) -> tuple[Array, Array]:
    """Return a variance over seeds plus that over items, and the degrees of freedom of the sum."""
    if not error:
        return variance, degrees
    total = variance + error**2
    return total, total**2 / (variance**2 / degrees + error**4 / (items - 1))


def larger_variance_difference(row: Array, reference: Array, least: Array = 0.0) -> Difference:
    """Return the difference between independent rows, [..., n] and [..., m] with n, m >= 2, by the larger of their variances.

    Both rows are taken to vary as much as the one that varies more, and the degrees are those of the smaller row. The level holds
    for normal rows of any variances, and for rows with one-sided outliers, where Welch's test with five seeds does not.

    Args:
        least: [...], standard deviation of a pilot, below which that of the rows is not taken to be. It protects against a row
            whose seeds lack the long tail of their distribution by chance.
    """
    row, reference = np.asarray(row, np.float64), np.asarray(reference, np.float64)
    counts = row.shape[-1], reference.shape[-1]
    assert min(counts) >= 2
    largest = np.maximum(np.maximum(_variance(row), _variance(reference)), np.square(least))
    return Difference(
        test="larger variance",
        estimate=row.mean(-1) - reference.mean(-1),
        error=np.sqrt(largest * (1 / counts[0] + 1 / counts[1])),
        degrees=np.float64(min(counts) - 1),
        unit=np.sqrt(largest),
        counts=counts,
    )


def paired_difference(row: Array, reference: Array, least: Array = 0.0) -> Difference:
    """Return the difference seed by seed; both are [..., n] with n >= 2, in the same order of seeds.

    Args:
        least: [...], standard deviation of differences in a pilot, below which that of the pairs is not taken to be.
    """
    row, reference = np.asarray(row, np.float64), np.asarray(reference, np.float64)
    assert row.shape[-1] == reference.shape[-1] >= 2
    count, differences = row.shape[-1], row - reference
    deviation = np.maximum(np.sqrt(_variance(differences)), least)
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


def step_down(release: Array, statements: Array) -> Array:
    """Return p values of statements adjusted for all claims, where a claim leaves the correction once it is released.

    A claim has nested statements ("the difference is above -0.1", "above 0", "above 0.1"). It is released by the strongest, after
    which no statement of this family can be false; a weaker statement alone does not release it, because the strongest could
    still be shown by mistake. Without this rule Holm's correction would not hold for claims with more than one statement.

    Args:
        release: [..., claims], p values of the strongest statements.
        statements: [..., claims], p values of weaker ones, at most those of `release`.
    """
    release, statements = np.asarray(release, np.float64), np.asarray(statements, np.float64)
    count, released = release.shape[-1], holm_adjusted(release)
    adjusted = np.minimum(released, np.minimum(1.0, statements * count))
    ordered = np.sort(released, -1)
    for gone in range(1, count):
        step = np.maximum(ordered[..., gone - 1 : gone], np.minimum(1.0, statements * (count - gone)))
        adjusted = np.minimum(adjusted, step)
    return adjusted


# --- shares of seeds that learned -----------------------------------------------------------------------------------------------


def fisher_fewer(row: int, row_seeds: int, reference: int, reference_seeds: int) -> float:
    """Return the exact one-sided p value of "the row learns more rarely", from the seeds that learned (Fisher)."""
    from scipy import stats  # takes longer to import than JAX

    return float(stats.hypergeom.cdf(row, row_seeds + reference_seeds, row + reference, row_seeds))


def share_interval(learned: int, seeds: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the two-sided interval of a share by Clopper and Pearson."""
    tail = (1 - confidence) / 2
    low = scipy.special.betaincinv(learned, seeds - learned + 1, tail) if learned else 0.0
    high = scipy.special.betaincinv(learned + 1, seeds - learned, 1 - tail) if learned < seeds else 1.0
    return float(low), float(high)


# --- power and planning ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Design:
    """The seeds and true deviations of a comparison of normal rows, and the level of its one-sided test."""

    counts: tuple[int, int]
    """Seeds of both rows; a pair uses the first."""
    deviations: tuple[float, float] = (1.0, 1.0)
    """Standard deviations of both rows; of pairs, that of a difference of one seed is the first."""
    alpha: float = LEVEL
    """Level of a test: for the first step of Holm's correction, the level divided by the number of claims."""
    is_paired: bool = False
    least: float = 0.0
    """Standard deviation of a pilot, as for `larger_variance_difference`."""
    item_error: float = 0.0
    items: int = 0

    def limits(self) -> tuple[Array, float]:
        """Return the estimates above which the test finds a difference, all equally likely, and the estimate's deviation."""
        (first, second), (of_first, of_second) = self.counts, self.deviations
        chances = (np.arange(NODES) + 0.5) / NODES
        samples = of_first**2 * scipy.special.gammaincinv((first - 1) / 2, chances) * 2 / (first - 1)
        if self.is_paired:
            variance, true, degrees = np.maximum(samples, self.least**2) / first, of_first**2 / first, first - 1
        else:
            others = of_second**2 * scipy.special.gammaincinv((second - 1) / 2, chances) * 2 / (second - 1)
            largest = np.maximum(np.maximum(samples[:, None], others), self.least**2)
            variance = largest * (1 / first + 1 / second)
            true, degrees = of_first**2 / first + of_second**2 / second, min(first, second) - 1
        variance, degrees = add_item_error(variance, np.float64(degrees), self.item_error, self.items)
        deviation = float(np.sqrt(true + self.item_error**2))
        return scipy.special.stdtrit(degrees, 1 - self.alpha) * np.sqrt(variance), deviation


def power_of_direction(difference: float, design: Design) -> float:
    """Return the chance that a one-sided test finds a true difference, averaged over the variances of the samples."""
    limits, deviation = design.limits()
    return float(scipy.special.ndtr((difference - limits) / deviation).mean())


def power_of_equivalence(margin: float, design: Design) -> float:
    """Return the chance that two equal rows are shown to differ by less than a margin."""
    limits, deviation = design.limits()
    return float(np.maximum(0.0, 2 * scipy.special.ndtr((margin - limits) / deviation) - 1).mean())


@functools.lru_cache(maxsize=1024)
def smallest_effect(design: Design, *, chance: float = 0.8, is_equivalence: bool = False) -> float:
    """Return the smallest true difference whose direction is found with a chance.

    Args:
        is_equivalence: return instead the smallest margin within which two equal rows are shown to be.
    """
    power, scale = power_of_equivalence if is_equivalence else power_of_direction, design.limits()[1]
    high = 1.0
    while power(high * scale, design) < chance:
        high *= 2
    root: Any = scipy.optimize.brentq(lambda effect: power(effect * scale, design) - chance, 0.0, high, xtol=1e-9)
    return float(root) * scale


def planned_seeds(
    sd: float | tuple[float, float], margin: float, claims: int = 1, power: float = 0.8, *, is_paired: bool = False
) -> int:
    """Return the number of seeds with which a difference of `margin` is found with a power.

    For the verdict "reproduced" of a claim with a margin, `margin` is what the expected difference has beyond it.

    Args:
        sd: standard deviation of both rows or of each, from a pilot; of pairs, that of a difference of one seed.
        claims: claims of the registration, among which the level is divided.

    Raises:
        BadInput: a number is not positive, or more than `MOST_SEEDS` seeds are needed.
    """
    deviations = sd if isinstance(sd, tuple) else (sd, sd)
    if min(*deviations, margin, claims) <= 0 or not 0 < power < 1:
        raise BadInput(f"sd {sd}, margin {margin}, claims {claims}, power {power}: must be above 0, and power below 1")
    for seeds in range(FEWEST_SEEDS, MOST_SEEDS + 1):
        design = Design(counts=(seeds, seeds), deviations=deviations, alpha=LEVEL / claims, is_paired=is_paired)
        if power_of_direction(margin, design) >= power:
            return seeds
    raise BadInput(f"margin {margin}: {MOST_SEEDS} seeds do not find it at a standard deviation of {sd}; choose a larger one")


def spent_levels(looks: Sequence[int], level: float = LEVEL) -> list[float]:
    """Return the level of the tests at each look, of which the last is at all seeds.

    The spending function of Lan and DeMets resembles the limits of O'Brien and Fleming: little is spent early. The level of a
    look is what is newly spent, so that the sum, which bounds the chance of an error at any look, is `level` for every test.

    Args:
        looks: numbers of seeds, ascending.
    """
    z = scipy.special.ndtri(1 - level / 2)
    spent = [2 * scipy.special.ndtr(-z / np.sqrt(look / looks[-1])) for look in looks]
    return [float(now - before) for now, before in zip(spent, [0.0, *spent[:-1]], strict=True)]


# --- items ----------------------------------------------------------------------------------------------------------------------


def item_variance(row: Array, reference: Array, *, is_paired: bool) -> float:
    """Return the variance of a mean difference that is due to the choice of items, from outcomes [seeds, items] of both rows.

    The variance over seeds contains that of single outcomes, which differ from seed to seed. What remains is that of the items'
    own differences (the part of MultiBERTs' bootstrap over items that its bootstrap over seeds does not have), without bias.

    Args:
        is_paired: whether the seeds of both rows belong together, in the same order. What both outcomes of a seed share is then
            no part of the difference.
    """
    row, reference = np.asarray(row, np.float64), np.asarray(reference, np.float64)
    items = row.shape[1]
    total = (row.mean(0) - reference.mean(0)).var(ddof=1) / items
    for side in (row - reference,) if is_paired else (row, reference):
        seeds = len(side)
        residual = side - side.mean(0) - side.mean(1, keepdims=True) + side.mean()
        total -= (residual**2).sum() / ((seeds - 1) * (items - 1)) / (seeds * items) if seeds > 1 else 0.0
    return max(0.0, float(total))

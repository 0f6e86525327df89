"""Means over seeds and differences between rows of seeds, with their intervals and corrected p values."""

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Literal

import numpy as np

from eval.experiments.analysis import significance_tests

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds, with half the width of its confidence interval if there are several."""

    mean: float
    half: float | None
    """Half the width of the mean's 95% interval; None for a single value, and for a difference that is the same for all seeds."""

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        """Return the mean of independent values, with t(0.975, n - 1) times its standard error (Student 1908)."""
        return cls(*significance_tests.mean_and_half_width(values, CONFIDENCE))


@dataclasses.dataclass(frozen=True)
class RowDifference(Estimate):
    """The mean of a row minus that of the first row, in one metric."""

    test: Literal["paired", "welch"]
    """paired: seed by seed. welch: the rows have other seeds, and are independent."""
    p: float | None
    """Two-sided p value of "there is no difference"; None without an interval."""
    p_holm: float | None = None
    """p after Holm's correction for the number of rows that are compared with the first one, in this metric alone."""

    @property
    def clear(self) -> bool:
        """True if the difference is significant at 5% after the correction."""
        return self.p_holm is not None and self.p_holm <= 1 - CONFIDENCE


def paired_row_difference(differences: Sequence[float]) -> RowDifference:
    """Return the difference of two rows from its independent values, those of each seed or of each parent."""
    if len(differences) < 2:
        return RowDifference(statistics.fmean(differences), None, "paired", None)
    return _tested("paired", significance_tests.paired_difference(differences, np.zeros(len(differences))))


def welch_row_difference(row: Sequence[float], first: Sequence[float]) -> RowDifference:
    """Return the difference of two rows of other seeds, by Welch's t; without interval if one has a single value."""
    if min(len(row), len(first)) < 2:
        return RowDifference(statistics.fmean(row) - statistics.fmean(first), None, "welch", None)
    return _tested("welch", significance_tests.welch_difference(row, first))


def _tested(test: Literal["paired", "welch"], difference: significance_tests.Difference) -> RowDifference:
    mean = float(difference.estimate)
    # All seeds have the same values, or differ by the same number: no test tells such a difference from chance.
    if difference.error <= significance_tests.ROUNDING * abs(mean):
        return RowDifference(mean, None, test, None)
    half = float(difference.half_width((1 + CONFIDENCE) / 2))
    return RowDifference(mean, half, test, min(1.0, 2 * float(min(difference.p_below(), difference.p_above()))))


def correct_for_rows(differences: Sequence[RowDifference]) -> list[RowDifference]:
    """Return differences to one row with their p values corrected for the number of differences that have one (Holm)."""
    tested = [number for number, difference in enumerate(differences) if difference.p is not None]
    adjusted = significance_tests.holm_adjusted(np.array([differences[number].p for number in tested])) if tested else []
    corrected = list(differences)
    for number, p in zip(tested, adjusted, strict=True):
        corrected[number] = dataclasses.replace(differences[number], p_holm=float(p))
    return corrected

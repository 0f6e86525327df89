"""Tests over seeds against scipy, a simulation and printed tables; wrong formulas are caught by the same checks."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats

from eval.experiments.analysis import significance_tests
from eval.experiments.analysis.significance_tests import (
    Difference,
    holm_adjusted,
    paired_difference,
    smallest_effect,
    welch_difference,
)

RNG = np.random.default_rng(24)
ROW, REFERENCE = RNG.normal(0.4, 1, (9, 4)), RNG.normal(0, 3, (9, 6))


def is_welch(test: Callable[[Any, Any], Difference]) -> bool:
    """Return whether a test gives the one-sided p values of scipy, also at a margin."""
    difference, expected = test(ROW, REFERENCE), dict(axis=1, equal_var=False)
    return all(
        np.allclose(p, scipy.stats.ttest_ind(ROW - value, REFERENCE, alternative=side, **expected).pvalue, rtol=1e-9)
        for value in (0.0, 0.7)
        for p, side in ((difference.p_below(value), "less"), (difference.p_above(value), "greater"))
    )


class TwoSided(Difference):
    def p_below(self, value: float = 0.0) -> Any:
        return 2 * np.minimum(super().p_below(value), super().p_above(value))


def test_welch_and_pairs_are_those_of_scipy() -> None:
    assert is_welch(welch_difference)
    row, reference = ROW, REFERENCE[:, :4]
    expected = scipy.stats.ttest_rel(row, reference, axis=1, alternative="less")
    assert np.allclose(paired_difference(row, reference).p_below(), expected.pvalue, rtol=1e-9)
    below, above = (scipy.stats.ttest_rel(row - at, reference, axis=1, alternative=side).pvalue for at, side in MARGINS)
    assert np.allclose(paired_difference(row, reference).p_within(0.5), np.maximum(below, above), rtol=1e-9)
    half = scipy.stats.ttest_rel(row, reference, axis=1).confidence_interval(0.9)
    assert np.allclose(half.high - half.low, 2 * paired_difference(row, reference).half_width(0.95), rtol=1e-9)


MARGINS = ((0.5, "less"), (-0.5, "greater"))


@pytest.mark.planted(4)
def test_wrong_t_tests_are_caught() -> None:
    changes = (
        lambda x, y: {"degrees": np.float64(x.shape[1] + y.shape[1] - 2)},
        lambda x, y: {"error": np.sqrt(x.var(1) / x.shape[1] + y.var(1) / y.shape[1])},
        lambda x, y: {"estimate": y.mean(1) - x.mean(1)},
    )
    wrong = [lambda x, y, of=of: dataclasses.replace(welch_difference(x, y), **of(x, y)) for of in changes]
    assert [is_welch(test) for test in (*wrong, lambda x, y: TwoSided(**vars(welch_difference(x, y))))] == [False] * 4


def is_holm(adjust: Callable[[Any], Any]) -> bool:
    # Holm 1979's steps by hand: .005 x 4, .01 x 3, .03 x 2, .04 x 1, which may not fall.
    return np.allclose(adjust([[0.01, 0.04, 0.03, 0.005], [0.5, 0.6, 1, 0.9]]), [[0.03, 0.06, 0.06, 0.02], [1, 1, 1, 1]])


def test_holms_correction_is_that_of_the_definition() -> None:
    assert is_holm(holm_adjusted)


@pytest.mark.planted(3)
def test_wrong_corrections_are_caught() -> None:
    false_discovery = functools.partial(scipy.stats.false_discovery_control, axis=-1)
    wrong = (np.asarray, lambda p: np.minimum(1, 4 * np.asarray(p)), false_discovery)
    assert [is_holm(adjust) for adjust in wrong] == [False] * 3


def test_smallest_effects_are_those_of_the_printed_tables() -> None:
    # Searched in steps of .1, upwards; 2.4 is one step too high.
    table = {3: (2.4, 4.7, 6.6), 5: (1.4, 2.1, 2.5), 8: (1.0, 1.4, 1.6)}
    for n, printed in table.items():
        effects = [smallest_effect((n, n), claims=claims, is_paired=True) for claims in (1, 4, 8)]
        assert all(effect <= value < effect + 0.11 for effect, value in zip(effects, printed, strict=True))
    # In steps of .05, simulated.
    assert [smallest_effect((n, n)) for n in (3, 5, 8)] == pytest.approx([2.70, 1.80, 1.35], abs=0.05)
    assert [smallest_effect((n, n), is_paired=True) * 2**0.5 for n in (3, 5, 8)] == pytest.approx([3.25, 1.95, 1.40], abs=0.05)
    one = [[significance_tests.mean_and_half_width(np.arange(n))[1] / np.arange(n).std(ddof=1) for n in (3, 5, 10)]]
    one += [[paired_difference(np.arange(n), np.zeros(n)).half_width() / np.arange(n).std(ddof=1) for n in (3, 5, 10)]]
    assert np.allclose(one, [[2.48, 1.24, 0.72], [1.69, 0.95, 0.58]], atol=0.006)


@pytest.mark.parametrize("counts", [(3, 3), (3, 5)])
def test_power_is_that_of_a_simulation(counts: tuple[int, int]) -> None:
    draws = 40_000
    rows = [RNG.normal(mean, 1, (draws, n)) for mean, n in zip((2.0, 0.0), counts, strict=True)]
    for alpha in (0.05, 0.01):
        share = (welch_difference(*rows).p_above() <= alpha).mean()
        assert abs(share - significance_tests.test_power(2.0, counts, alpha=alpha, is_paired=False)) < 4 * 0.5 / draws**0.5


def test_a_margin_is_shown_with_the_promised_chance() -> None:
    margin = significance_tests.smallest_margin((5, 5))
    rows = RNG.normal(size=(2, 20_000, 5))
    share = (welch_difference(*rows).p_within(margin) <= 0.05).mean()
    assert 0.8 - 4 * 0.4 / 20_000**0.5 <= share < 0.85


def test_tests_over_the_outcomes_of_items() -> None:
    assert significance_tests.mcnemar([1] * 9 + [0], [0] * 9 + [1]) == pytest.approx(2 * (1 + 10) / 2**10)
    assert significance_tests.mcnemar([1, 0], [1, 0]) == 1.0
    seeds, items = RNG.normal(0, 0.1, (3, 1)), RNG.normal(0, 2, 900)
    parts = significance_tests.error_parts(seeds + items, np.zeros((3, 900)))
    assert parts.items == pytest.approx(items.std() / 30, rel=0.1)
    assert parts.seeds == pytest.approx(seeds.std(ddof=1) / 3**0.5)


def test_the_correlation_of_two_values_is_not_defined() -> None:
    assert significance_tests.seed_correlation([1, 2, 3], [2, 4, 6]) == pytest.approx(1)
    assert significance_tests.seed_correlation([1, 2], [2, 4]) is None

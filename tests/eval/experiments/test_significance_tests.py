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
    Design,
    Difference,
    holm_adjusted,
    item_variance,
    larger_variance_difference,
    paired_difference,
    planned_seeds,
    power_of_direction,
    power_of_equivalence,
    smallest_effect,
    spent_levels,
    step_down,
    welch_difference,
)
from zoo.errors import BadInput

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
    half = scipy.stats.ttest_rel(row, reference, axis=1).confidence_interval(0.9)
    assert np.allclose(half.high - half.low, 2 * paired_difference(row, reference).half_width(0.95), rtol=1e-9)


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


def test_a_claim_leaves_the_correction_only_by_its_strongest_statement() -> None:
    release, weaker = np.array([0.001, 0.5, 0.9]), np.array([0.0001, 0.004, 0.9])
    assert np.allclose(step_down(release, release), holm_adjusted(release))
    # The first claim is released at 0.003, after which two claims share the level; the weaker statement releases none.
    assert np.allclose(step_down(release, weaker), [0.0003, 0.008, 1.0])
    assert np.allclose(step_down([0.5, 0.5, 0.9], weaker)[1], 0.012)


def test_the_larger_variance_is_that_of_both_rows() -> None:
    rows = RNG.normal(size=(1_000, 5)), RNG.normal(0, 4, (1_000, 8))
    difference = larger_variance_difference(*rows, least=3.0)
    deviation = np.maximum(np.maximum(rows[0].std(1, ddof=1), rows[1].std(1, ddof=1)), 3.0)
    statistic = (rows[0].mean(1) - rows[1].mean(1) - 0.5) / (deviation * np.sqrt(1 / 5 + 1 / 8))
    assert np.allclose(difference.p_above(0.5), scipy.stats.t.sf(statistic, 4), rtol=1e-12)
    assert np.allclose(difference.p_below(0.5), scipy.stats.t.cdf(statistic, 4), rtol=1e-12)
    least = paired_difference(rows[0], rows[0] - 1 + 1e-9 * rows[0], least=2.0)
    assert np.allclose(least.error, 2 / np.sqrt(5))


def is_power(power: Callable[..., float], design: Design, draws: int = 40_000) -> bool:
    """Return whether a power is within three points of a simulation, for a direction and an equivalence."""
    (first, second), sds = design.counts, design.deviations
    if design.is_paired:
        differences = RNG.normal(0, sds[0], (draws, first))
        tested = paired_difference(differences, np.zeros_like(differences), design.least)
    else:
        rows = (RNG.normal(0, sd, (draws, n)) for sd, n in zip(sds, (first, second), strict=True))
        tested = larger_variance_difference(*rows, least=design.least)
    if design.items:
        tested = dataclasses.replace(tested, estimate=tested.estimate + RNG.normal(0, design.item_error, draws))
        tested = tested.with_items(design.item_error, design.items)
    effect = smallest_effect(design)
    shifted = dataclasses.replace(tested, estimate=tested.estimate + effect)
    margin = smallest_effect(design, is_equivalence=True)
    within = (tested.p_below(margin) <= design.alpha) & (tested.p_above(-margin) <= design.alpha)
    shares = (shifted.p_above() <= design.alpha).mean(), within.mean()
    stated = power(effect, design), power_of_equivalence(margin, design)
    return stated[1] == pytest.approx(0.8) and bool(np.allclose(shares, stated, atol=0.01))


DESIGNS = (
    Design(counts=(5, 5), deviations=(3.0, 0.3)),
    Design(counts=(5, 8), deviations=(0.01, 0.02), alpha=0.025 / 4, least=0.015),
    Design(counts=(6, 6), deviations=(2.0, 0.0), is_paired=True),
    Design(counts=(5, 5), deviations=(1.0, 1.0), item_error=0.7, items=500),
)


@pytest.mark.planted(2)
def test_power_is_that_of_a_simulation() -> None:
    assert [is_power(power_of_direction, design) for design in DESIGNS] == [True] * 4
    # As if the deviation were known, and as for pairs.
    of_normal = lambda effect, design: float(scipy.stats.norm.sf(1.96 - effect / design.limits()[1]))  # noqa: E731
    as_pairs = lambda effect, design: power_of_direction(effect, dataclasses.replace(design, is_paired=True))  # noqa: E731
    assert [is_power(power, DESIGNS[0]) for power in (of_normal, as_pairs)] == [False] * 2


def test_detectable_effects_and_planned_seeds() -> None:
    table = {5: (2.68, 3.96, 1.68, 2.48), 8: (1.79, 2.38, 1.16, 1.53), 10: (1.53, 1.98, 1.00, 1.28)}
    for n, printed in table.items():
        designs = (Design(counts=(n, n), alpha=0.025 / k, is_paired=pairs) for pairs in (False, True) for k in (1, 4))
        assert [smallest_effect(design) for design in designs] == pytest.approx(printed, abs=0.006)
    one = [[significance_tests.mean_and_half_width(np.arange(n))[1] / np.arange(n).std(ddof=1) for n in (3, 5, 10)]]
    one += [[paired_difference(np.arange(n), np.zeros(n)).half_width() / np.arange(n).std(ddof=1) for n in (3, 5, 10)]]
    assert np.allclose(one, [[2.48, 1.24, 0.72], [1.69, 0.95, 0.58]], atol=0.006)
    # The least number of seeds with the power.
    seeds = planned_seeds((1.0, 0.5), 1.2, claims=2)
    powers = [power_of_direction(1.2, Design(counts=(n, n), deviations=(1.0, 0.5), alpha=0.0125)) for n in (seeds - 1, seeds)]
    assert powers[0] < 0.8 <= powers[1]
    assert (planned_seeds(0.001, 1.0), planned_seeds(0.001, 1.0, is_paired=True)) == (5, 5)
    for sd, margin, match in ((0.0, 1.0, "must be above 0"), (1.0, 1e-3, "1000 seeds do not find it")):
        with pytest.raises(BadInput, match=match):
            planned_seeds(sd, margin)


def test_looks_spend_little_early_and_all_in_sum() -> None:
    levels = spent_levels([5, 8])
    # Lan and DeMets 1983: 2 - 2 Phi(z / sqrt(t)) at t = 0.625.
    assert levels[0] == pytest.approx(2 * scipy.stats.norm.sf(scipy.stats.norm.isf(0.0125) / 0.625**0.5))
    assert sum(levels) == pytest.approx(0.025) and spent_levels([5]) == pytest.approx([0.025])


def test_shares_are_compared_exactly() -> None:
    for row, reference in ((0, 5), (1, 5), (3, 3), (5, 2)):
        table = [[row, 5 - row], [reference, 6 - reference]]
        expected: Any = scipy.stats.fisher_exact(table, alternative="less")
        assert significance_tests.fisher_fewer(row, 5, reference, 6) == pytest.approx(expected.pvalue, rel=1e-12)
    for learned in (0, 2, 5):
        interval = scipy.stats.binomtest(learned, 5).proportion_ci(method="exact")
        assert significance_tests.share_interval(learned, 5) == pytest.approx((interval.low, interval.high))


def is_variance(estimate: Callable[..., float], shared: float = 0.0, draws: int = 300) -> bool:
    """Return whether an estimate, with that over seeds, is the variance of a mean difference over other seeds and items.

    Args:
        shared: standard deviation of what both outcomes of a seed and an item have in common; above 0, the test is paired.
    """
    rng, seeds, items = np.random.default_rng(3), 5, 60
    parts, differences, over_seeds = [], [], []
    for _ in range(draws):
        difficulty, common = rng.normal(0, 1, items), shared * rng.normal(size=(seeds, items))
        noise = [rng.normal(0, 0.1, (seeds, 1)) + rng.normal(0, 2, (seeds, items)) + common for _ in range(2)]
        sides = [share * difficulty + noise[number] for number, share in enumerate((1.0, 0.2))]
        parts.append(estimate(*sides))
        differences.append(sides[0].mean() - sides[1].mean())
        of_sides = (sides[0] - sides[1],) if shared else sides
        over_seeds.append(sum(side.mean(1).var(ddof=1) / seeds for side in of_sides))
    return abs(np.mean(parts) + np.mean(over_seeds) - np.var(differences)) < 4 * np.var(differences) * np.sqrt(2 / draws) / 2


@pytest.mark.planted(3)
def test_the_variance_over_items_complements_that_over_seeds() -> None:
    independent, paired = (functools.partial(item_variance, is_paired=is_paired) for is_paired in (False, True))
    assert is_variance(independent) and is_variance(paired, shared=3.0)
    # The single outcomes counted twice, the items left out, and what both outcomes of a seed share.
    twice = lambda row, reference: (row.mean(0) - reference.mean(0)).var(ddof=1) / row.shape[1]  # noqa: E731
    assert [is_variance(wrong) for wrong in (twice, lambda *_: 0.0)] == [False] * 2
    assert not is_variance(independent, shared=3.0)
    same = RNG.normal(size=(1, 50))
    assert independent(np.tile(same, (3, 1)), np.zeros((3, 50))) == pytest.approx(same.var(ddof=1) / 50)


def test_the_correlation_of_two_values_is_not_defined() -> None:
    assert significance_tests.seed_correlation([1, 2, 3], [2, 4, 6]) == pytest.approx(1)
    assert significance_tests.seed_correlation([1, 2], [2, 4]) is None

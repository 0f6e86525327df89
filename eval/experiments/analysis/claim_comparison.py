"""The test of a claim by one metric against one reference: of means if all seeds learned, else of the shares that did."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from eval.experiments.analysis import learned_seeds, significance_tests
from eval.experiments.analysis.learned_seeds import Floor
from eval.experiments.analysis.seed_values import SeedValues, sign_of_better
from eval.experiments.analysis.significance_tests import Array, Difference
from eval.experiments.declaration import FEWEST_SEEDS

Json = Mapping[str, Any]


def p_values(kind: str, difference: Difference, margin: float) -> tuple[Array, Array]:
    """Return [..., 3] p values of "d is above" and of "d is below" the limits -margin, 0 and margin.

    The difference d has the sign of the claim: for "less", it is that of the reference and the row.
    """
    limits = (-margin, 0.0, margin)
    if kind == "less":
        tests = lambda limit: (difference.p_below(-limit), difference.p_above(-limit))  # noqa: E731
    else:
        tests = lambda limit: (difference.p_above(limit), difference.p_below(limit))  # noqa: E731
    above, below = zip(*(tests(limit) for limit in limits), strict=True)
    return np.stack(above, -1), np.stack(below, -1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """The test of a claim, by one metric, against one of its references."""

    row: SeedValues
    reference: SeedValues
    outcome: str
    """Statistic that was compared: "means", "shares" or "none"."""
    reason: str
    """The reason that nothing was, "" if something was."""
    difference: Difference | None
    """With the error over items; None if a row has fewer than two values."""
    seed_error: float | None
    item: Json | None
    deviations: tuple[float, float]
    rho: float | None
    above: Array
    below: Array

    @classmethod
    def of(cls, claim: Json, row: SeedValues, reference: SeedValues, floor: Floor | None, item: Json | None) -> "Comparison":
        seeds = [seed for seed in row.values if seed in reference.values]
        pairs = [np.array([side.values[seed] for seed in seeds]) for side in (row, reference)]
        is_paired, least = bool(claim.get("paired")), float(claim.get("pilot_deviation") or 0)
        first, second = pairs if is_paired else [np.array([*side.values.values()]) for side in (row, reference)]
        difference, seed_error, deviations = None, None, (0.0, 0.0)
        if min(len(first), len(second)) >= 2:
            test = significance_tests.paired_difference if is_paired else significance_tests.larger_variance_difference
            difference = test(first, second, least)
            seed_error = float(difference.error)
            varying = (first - second, np.zeros(2)) if is_paired else (first, second)
            deviations = float((varying[0] - varying[0][0]).std(ddof=1)), float((varying[1] - varying[1][0]).std(ddof=1))
            if item is not None:
                difference = difference.with_items(item["item_error"], item["items"])
        rounding = significance_tests.ROUNDING * max((abs(value) for value in (*first, *second)), default=0.0)
        outcome, reason = _outcome(claim, row, reference, floor, shared=len(seeds), varies=bool(max(deviations) > rounding))
        above, below = np.ones((2, 3))
        if outcome == "means" and difference is not None:
            above, below = p_values(claim["kind"], difference, float(claim.get("margin") or 0))
        elif outcome == "shares":
            above, below = _share_p_values(claim, row, reference)
        return cls(
            **{"row": row, "reference": reference, "outcome": outcome, "reason": reason, "difference": difference, "item": item},
            **{"seed_error": seed_error, "deviations": deviations, "above": above, "below": below},
            rho=significance_tests.seed_correlation(*pairs),
        )


def _outcome(
    claim: Json, row: SeedValues, reference: SeedValues, floor: Floor | None, *, shared: int, varies: bool
) -> tuple[str, str]:
    """Return what is compared, and the reason if nothing is."""
    for side in (row, reference):
        registered = side.ended + len(side.missing)
        if registered < FEWEST_SEEDS:
            return "none", f"{side.row} has {registered} seed{'s' * (registered != 1)}; a verdict needs {FEWEST_SEEDS}"
        if side.missing:
            return "none", f"{len(side.missing)} of {registered} seeds of {side.row} have no {claim['metric']} yet; run them"
    if row.learned == row.ended and reference.learned == reference.ended:
        if claim.get("paired") and shared < FEWEST_SEEDS:
            return "none", f"{shared} seeds are shared with {reference.row}; a paired verdict needs {FEWEST_SEEDS}"
        if not varies:
            what = "differ by the same value" if claim.get("paired") else "have the same values"
            return "none", f"all seeds {what}, so that there is no noise to compare with; check that the runs differ"
        return "means", ""
    if row.learned or reference.learned:
        return "shares", ""
    what = "" if floor is None else f": none is better than {floor[0]} ({floor[1]:g}) by more than {claim.get('margin') or 0:g}"
    return "none", f"no seed of {row.row} or {reference.row} learned{what}"


def _share_p_values(claim: Json, row: SeedValues, reference: SeedValues) -> tuple[Array, Array]:
    """Return the p values of `p_values` for shares: a side that learns more rarely is worse by more than any margin."""
    more, fewer = learned_seeds.share_p_values(row, reference)
    is_better = (claim["kind"] != "less") == (sign_of_better(claim["metric"], claim.get("better")) > 0)
    over, under = (more, fewer) if is_better else (fewer, more)
    if claim["kind"] == "equivalent":
        return np.array([1.0, 1.0, over]), np.array([under, 1.0, 1.0])
    return np.full(3, over), np.full(3, under)

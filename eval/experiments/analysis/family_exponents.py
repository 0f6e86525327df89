"""The judge of `scaling_families`: whether the exponent of the optimal size differs between families of models.

Every family has sizes, budgets and a control row of its own, and a fit of its own (`scaling_fit`). The fits share no run, so that
the estimates of two families are independent. Sizes are counted with embeddings and FLOPs with the last layer, as by Hoffmann et
al. 2022.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.experiments.analysis.fit_claims import FitDraft, compare_estimate, count_inner_minima, judge_fit_claims
from eval.experiments.analysis.scaling_fit import FEWEST_BUDGETS, ScalingFit, fit_scaling
from eval.experiments.analysis.scaling_runs import HOFFMANN

REFERENCE, ALL = "gpt", "families"
"""The family that the others are compared with, and the name in a claim (in place of a row's) for all families."""
CONTROL = "fresh-"
"""Beginning of the name of a family's control row, before the name of the family."""


def split_families(registration: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return family -> the registration with its rows and its control alone.

    The family of a row is the beginning of its recipe: bert of bert-nano. One family alone has the control of the registration.
    """
    stage = registration["claims"][0]["metric"].partition("/")[0] if registration["claims"] else "train"
    rows: dict[str, list[Any]] = {}
    for row in registration["rows"]:
        rows.setdefault(row["stages"][stage]["recipe"].partition("-")[0], []).append(row)
    return {
        family: {**registration, "rows": of_family, "control": f"{CONTROL}{family}" if len(rows) > 1 else registration["control"]}
        for family, of_family in rows.items()
    }


def fit_families(registration: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> dict[str, ScalingFit | str]:
    """Return family -> its fits, or why there can be none."""
    return {family: fit_scaling(of_family, cells) for family, of_family in split_families(registration).items()}


def judge_family_claims(
    registration: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], floors: Sequence[Mapping[str, Any]] = ()
) -> list[dict[str, Any]]:
    """Return the "claims" of experiment.json, as `eval.experiments.analysis.verdicts.judge` does.

    The `row` of a claim is the family whose exponent is compared with that of `REFERENCE`, or `ALL` for the inner minima.
    """
    fits = fit_families(registration, cells)
    drafts = [
        _inner_minima(claim, fits) if claim["row"] == ALL else _exponent_difference(claim, fits)
        for claim in registration["claims"]
    ]
    seeds = min((0 if isinstance(fit, str) else fit.seeds for fit in fits.values()), default=0)
    return judge_fit_claims(registration, drafts, seeds)


def _inner_minima(claim: Mapping[str, Any], fits: Mapping[str, ScalingFit | str]) -> FitDraft:
    """Compare the number of budgets with an inner minimum, in the family with the fewest, with the number that is needed."""
    for family, fit in fits.items():
        if isinstance(fit, str):
            return FitDraft(claim=claim, reason=f"{family}: {fit}")
    drafts = {
        family: count_inner_minima(claim, fit.inner_p, fit.inner_opposite_p)
        for family, fit in fits.items()
        if not isinstance(fit, str)
    }
    # All families must have them: the p value is the greatest one (Berger 1982). The opposite need hold for one family.
    above = np.max([draft.above for draft in drafts.values()], 0)
    below = np.minimum(1.0, len(drafts) * np.min([draft.below for draft in drafts.values()], 0))
    text = "; ".join(f"{family}: {draft.reason}" for family, draft in drafts.items())
    return FitDraft(claim=claim, reason=text, testable=True, above=above, below=below)


def _exponent_difference(claim: Mapping[str, Any], fits: Mapping[str, ScalingFit | str]) -> FitDraft:
    """Compare the exponent of a family with that of the reference."""
    exponents = {}
    for family in (claim["row"], REFERENCE):
        fit = fits.get(family, "the family was not trained")
        if isinstance(fit, str):
            return FitDraft(claim=claim, reason=f"{family}: {fit}")
        exponents[family] = fit.exponent(HOFFMANN)
        if exponents[family] is None:
            text = f"{family}: fewer than {FEWEST_BUDGETS} of {len(fit.budgets)} budgets have an inner minimum"
            return FitDraft(claim=claim, reason=f"{text}, so there are too few optima to fit")
    own, reference = exponents.values()
    difference = own.minus(reference)
    low, high = difference.interval()
    words = " and ".join(f"{exponent.value:.3f} of {family}" for family, exponent in exponents.items())
    return compare_estimate(claim, difference, f"exponents {words}, 95% interval of the difference {low:+.3f} to {high:+.3f}")

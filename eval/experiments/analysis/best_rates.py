"""The judge of `width_transfer`: how far the best learning rate moves from a narrow model to a wide one.

A seed's best rate is the minimum of the parabola through the losses of the best registered rate and its two neighbours, over the
logarithm of the rate; next to a run that diverged, and at either end, it is the best registered rate itself. Its shift from the
narrow to the wide model, in doublings, is judged by Student's t over seeds, with the levels and the correction of
`eval.experiments.analysis.verdicts`.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

from eval.experiments.analysis.family_exponents import ALL, split_families
from eval.experiments.analysis.fit_claims import FitDraft, compare_estimate, judge_fit_claims
from eval.experiments.analysis.isoflop_fit import Estimate
from eval.experiments.declaration import FEWEST_SEEDS

FEWEST_RATES = 3
LEAST_DEVIATION = 0.1
"""Smallest standard deviation of a shift, in doublings: rates are a factor of 2 apart, so that equal minima have errors too."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RateCurve:
    """The losses of a model over the learning rate."""

    log_rates: Float64[np.ndarray, " rates"]
    """Logarithms of the rates to base 2, ascending."""
    losses: Float64[np.ndarray, "seeds rates"]
    """Infinite where a run diverged."""

    @property
    def best(self) -> Float64[np.ndarray, " seeds"]:
        """The logarithm of the best rate of each seed."""
        return np.array([_minimum(self.log_rates, losses) for losses in self.losses])

    @property
    def is_inside(self) -> Bool[np.ndarray, " seeds"]:
        """True for the seeds whose best registered rate is neither the lowest nor the highest one."""
        place = self.losses.argmin(1)
        return (place > 0) & (place < len(self.log_rates) - 1)


def _minimum(log_rates: Float64[np.ndarray, " rates"], losses: Float64[np.ndarray, " rates"]) -> float:
    place = int(losses.argmin())
    around = slice(place - 1, place + 2)
    if not 0 < place < len(losses) - 1 or not np.isfinite(losses[around]).all():
        return float(log_rates[place])
    square, linear, _ = np.polyfit(log_rates[around] - log_rates[place], losses[around], 2)
    return float(log_rates[place] if square <= 0 else log_rates[place] - linear / (2 * square))


def read_rate_curves(
    registration: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, RateCurve | str]]:
    """Return family -> model -> its curve, or why it has none.

    The models are "narrow", "transferred" and "standard": the base, and the wide model with and without width transfer.
    """
    stage, score = registration["claims"][0]["metric"].split("/") if registration["claims"] else ("train", "loss")
    families, rows = split_families(registration), dict[str, dict[str, dict[float, str]]]()
    for family, of_family in families.items():
        for row in of_family["rows"]:
            if row["name"] != of_family["control"]:
                by_rate = rows.setdefault(family, {}).setdefault(row["name"].split("-")[1], {})
                by_rate[row["stages"][stage]["options"]["optim.lr"]] = row["name"]
    losses = {
        (cell["row"], cell["seed"]): math.inf if cell["status"] == "diverged" else cell["scores"].get(score)
        for cell in cells
        if cell["stage"] == stage
    }
    seeds = registration["seeds"]

    def curve(family: str, by_rate: Mapping[float, str]) -> RateCurve | str:
        if len(by_rate) < FEWEST_RATES or len(seeds) < FEWEST_SEEDS:
            return f"a curve needs {FEWEST_RATES} rates and {FEWEST_SEEDS} seeds, and has {len(by_rate)} and {len(seeds)}"
        names, control = [by_rate[rate] for rate in sorted(by_rate)], families[family]["control"]
        if lacking := [name for name in (*names, control) for seed in seeds if losses.get((name, seed)) is None]:
            return f"{lacking[0]} lacks seeds; it needs the loss of every registered run"
        values = np.array([[losses[name, seed] for name in names] for seed in seeds], np.float64)
        if values.min(1).max() >= min(losses[control, seed] for seed in seeds):
            return f"no rate of {names[0]} and its neighbours is better than the control row in every seed"
        return RateCurve(log_rates=np.log2(sorted(by_rate)), losses=values)

    return {family: {model: curve(family, by_rate) for model, by_rate in models.items()} for family, models in rows.items()}


def judge_rate_claims(
    registration: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], floors: Sequence[Mapping[str, Any]] = ()
) -> list[dict[str, Any]]:
    """Return the "claims" of experiment.json, as `eval.experiments.analysis.verdicts.judge` does.

    The `row` of a claim is a family, whose shift with width transfer it is about, or `ALL` for the shifts of every family without
    it. Shifts are in doublings of the rate.
    """
    curves = read_rate_curves(registration, cells)
    drafts = [
        _standard_draft(claim, curves)
        if claim["row"] == ALL
        else _shift_draft(claim, claim["row"], "transferred", curves.get(claim["row"], {}))
        for claim in registration["claims"]
    ]
    return [entry | {"test": "rates"} for entry in judge_fit_claims(registration, drafts, len(registration["seeds"]))]


def _standard_draft(claim: Mapping[str, Any], curves: Mapping[str, Mapping[str, RateCurve | str]]) -> FitDraft:
    """Return the claim about all families: its p value is the greatest one (Berger 1982); the opposite need hold for one."""
    drafts = [_shift_draft(claim, family, "standard", of_family) for family, of_family in curves.items()]
    if not drafts or not all(draft.testable for draft in drafts):
        return next((draft for draft in drafts if not draft.testable), FitDraft(claim=claim, reason="no family was trained"))
    above = np.max([draft.above for draft in drafts], 0)
    below = np.minimum(1.0, len(drafts) * np.min([draft.below for draft in drafts], 0))
    text = "; ".join(f"{family}: {draft.reason}" for family, draft in zip(curves, drafts, strict=True))
    return FitDraft(claim=claim, reason=text, testable=True, above=above, below=below)


def _shift_draft(claim: Mapping[str, Any], family: str, model: str, curves: Mapping[str, RateCurve | str]) -> FitDraft:
    pair = []
    for name in ("narrow", model):
        curve = curves.get(name, "it was not trained")
        if isinstance(curve, str):
            return FitDraft(claim=claim, reason=f"{family}, {name}: {curve}")
        # A best rate at the lower end is lower still, which only adds to the fall of the standard parametrization.
        falls = name == "standard" and (curve.losses.argmin(1) < len(curve.log_rates) - 1).all()
        if not curve.is_inside.all() and not falls:
            outside = int((~curve.is_inside).sum())
            text = f"{family}, {name}: the best rate of {outside} seeds is the lowest or the highest that was tried"
            return FitDraft(claim=claim, reason=f"{text}; add rates")
        pair.append(curve)
    narrow, wide = pair
    shifts = wide.best - narrow.best
    deviation = max(float(shifts.std(ddof=1)), LEAST_DEVIATION)
    shift = Estimate(value=shifts.mean(), error=np.float64(deviation / math.sqrt(len(shifts))), degrees=len(shifts) - 1)
    low, high = (2.0 ** float(end) for end in shift.interval())
    rates = f"{2.0 ** narrow.best.mean():.3g} to {2.0 ** wide.best.mean():.3g}"
    text = f"the best rate moves from {rates}, by a factor of {2.0 ** float(shift.value):.3g} ({low:.3g} to {high:.3g})"
    return compare_estimate(claim, shift, f"{text}, in doublings {float(shift.value):+.2f}")

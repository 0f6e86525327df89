"""The judge of scaling experiments: optimal sizes at equal FLOPs, their exponent, and the loss at a budget outside of the fit.

Levels, correction and words of the verdicts are those of `eval.experiments.analysis.verdicts`. See `isoflop_fit` for the errors,
`parametric_fit` for the loss as a function of N and D, and `scaling_runs` for the ways of counting.

The largest registered budget is held out: the loss there is predicted by a fit to the other budgets. The exponent uses all
budgets whose minimum is an inner one by a test at that level.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from eval.experiments.analysis import isoflop_fit
from eval.experiments.analysis.fit_claims import FitDraft, compare_estimate, count_inner_minima, judge_fit_claims
from eval.experiments.analysis.isoflop_fit import Curve, Estimate, Noise, Parabola
from eval.experiments.analysis.parametric_fit import ParametricLoss, fit_parametric_loss, prediction_weights
from eval.experiments.analysis.scaling_runs import HOFFMANN, KAPLAN, Budgets, Counting, SizeRuns, read_scaling_runs, row_budget
from eval.experiments.analysis.significance_tests import LEVEL

KAPLAN_EXPONENT, HOFFMANN_EXPONENT = 0.73, 0.5
FEWEST_SIZES, FEWEST_BUDGETS = 4, 3
"""Sizes of each budget, and budgets with an inner minimum, without which there is no exponent."""
DELTA = 0.05
"""Threshold of the Huber loss of means over seeds: beyond it lies no noise, but a size that did not learn."""
Array = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScalingFit:
    """The fits to the runs of all budgets."""

    budgets: Budgets
    held_out: float
    """The largest registered budget."""
    parabolas: list[Parabola]
    """By Hoffmann's counting, as are the curves of the inner minima."""
    noise: Noise
    inner_p: Array
    """[budgets]: p value of "the minimum is an inner one"."""
    inner_opposite_p: Array
    loss: ParametricLoss
    """Fit to the runs of all budgets."""

    @classmethod
    def of(cls, budgets: Budgets, held_out: float) -> "ScalingFit":
        """Return the fits; every budget has `FEWEST_SIZES` sizes."""
        loss = fit_sizes([size for sizes in budgets.values() for size in sizes])
        curves = [HOFFMANN.curve(sizes, loss)[1] for sizes in budgets.values()]
        parabolas = [isoflop_fit.fit_parabola(curve) for curve in curves]
        runs = [size.losses for sizes in budgets.values() for size in sizes]
        variances = np.array([np.var(losses, ddof=1) if len(losses) > 1 else 0.0 for losses in runs])
        noise = isoflop_fit.estimate_noise(variances, np.array([len(losses) for losses in runs]), parabolas)
        tests = [
            isoflop_fit.inner_minimum_p(curve, parabola, _slopes(noise, i, parabolas))
            for i, (curve, parabola) in enumerate(zip(curves, parabolas, strict=True))
        ]
        p, opposite = np.array(tests, np.float64).T
        return cls(
            budgets=budgets,
            held_out=held_out,
            parabolas=parabolas,
            noise=noise,
            inner_p=p,
            inner_opposite_p=opposite,
            loss=loss,
        )

    @property
    def has_minimum(self) -> Array:
        """Return which budgets have an inner minimum by the test, [budgets]."""
        return self.inner_p <= LEVEL

    @property
    def seeds(self) -> int:
        """Return the fewest seeds of a size."""
        return min(len(size.losses) for sizes in self.budgets.values() for size in sizes)

    def counted(self, counting: Counting) -> tuple[Array, list[Curve], list[Parabola]]:
        """Return the logs of the budgets' FLOPs, the curves and their parabolas, by a way of counting.

        The weights of the parabolas are for the losses as they were measured.
        """
        log_flops, curves, factors = zip(*(counting.curve(sizes, self.loss) for sizes in self.budgets.values()), strict=True)
        parabolas = [
            dataclasses.replace(parabola, minimum_weights=parabola.minimum_weights * factor)
            for parabola, factor in zip(map(isoflop_fit.fit_parabola, curves), factors, strict=True)
        ]
        return np.array(log_flops), list(curves), parabolas

    def exponent(self, counting: Counting) -> Estimate | None:
        """Return the exponent of N_opt over C; None if there are too few minima."""
        log_flops, curves, parabolas = self.counted(counting)
        inside = [
            parabola.coefficients[0] > 0 and curve.log_sizes[0] < parabola.minimum < curve.log_sizes[-1]
            for curve, parabola in zip(curves, parabolas, strict=True)
        ]
        use = self.has_minimum & np.array(inside)
        if use.sum() < FEWEST_BUDGETS:
            return None
        return self.noise.of(*isoflop_fit.fit_exponent(log_flops, parabolas, [bool(item) for item in use]))

    @functools.cached_property
    def lower_loss(self) -> ParametricLoss:
        """Return the fit to the runs of all budgets but the held-out one."""
        return fit_sizes(self._lower_sizes)

    @property
    def _lower_sizes(self) -> list[SizeRuns]:
        return [size for budget, sizes in self.budgets.items() if budget != self.held_out for size in sizes]

    def size_errors(self) -> Array:
        """Return the relative error of the predicted loss of each size of the held-out budget."""
        sizes = self.budgets[self.held_out]
        return self.lower_loss(*_sizes_and_tokens(sizes)) / _means(sizes) - 1

    def prediction_error(self) -> Estimate | None:
        """Return the log of predicted over measured loss at the optimum of the held-out budget; None without such an optimum.

        Prediction and measurement are the minima of parabolas over the same sizes.
        """
        sizes, observed = self.budgets[self.held_out], self.parabolas[-1]
        losses = self.lower_loss(*_sizes_and_tokens(sizes))
        predicted = isoflop_fit.fit_parabola(Curve(log_sizes=HOFFMANN.curve(sizes, self.lower_loss)[1].log_sizes, means=losses))
        if not self.has_minimum[-1] or predicted.coefficients[0] <= 0:
            return None
        lower = self._lower_sizes
        of_logs = prediction_weights(self.lower_loss, _sizes_and_tokens(lower), _sizes_and_tokens(sizes))  # [sizes, lower]
        of_lower = (predicted.loss_weights * losses / predicted.loss) @ of_logs / _means(lower)
        weights = np.concatenate([of_lower, -observed.loss_weights / observed.loss])
        return self.noise.of(math.log(predicted.loss / observed.loss), weights)


def fit_sizes(sizes: Sequence[SizeRuns]) -> ParametricLoss:
    """Return the parametric loss fitted to the mean losses of sizes."""
    return fit_parametric_loss(*_sizes_and_tokens(sizes), _means(sizes), DELTA)


def _sizes_and_tokens(sizes: Sequence[SizeRuns]) -> tuple[Array, Array]:
    return np.array([size.parameters for size in sizes]), np.array([size.tokens for size in sizes])


def _means(sizes: Sequence[SizeRuns]) -> Array:
    return np.array([np.mean(size.losses) for size in sizes])


def _slopes(noise: Noise, place: int, parabolas: Sequence[Parabola]) -> tuple[Estimate, Estimate]:
    """Return the slopes at the smallest and at the largest size of a budget."""
    none = [np.zeros(len(parabola.residuals)) for parabola in parabolas]
    parabola = parabolas[place]
    first, last = (
        noise.of(slope, np.concatenate([*none[:place], weights, *none[place + 1 :]]))
        for slope, weights in zip(parabola.slopes, parabola.slope_weights, strict=True)
    )
    return first, last


def fit_scaling(registration: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> ScalingFit | str:
    """Return the fits to the cells of experiment.json, or why there can be none.

    Every registered run must have a loss: the mean of the seeds that did not diverge would be that of a selection.
    """
    rows = [row["name"] for row in registration["rows"] if row["name"] != registration["control"]]
    budgets, registered = read_scaling_runs(registration, cells), [row_budget(name) for name in rows]
    if few := [f"{budget:g}" for budget in sorted({*registered}) if registered.count(budget) < FEWEST_SIZES]:
        return f"a parabola needs {FEWEST_SIZES} sizes at every budget; {', '.join(few)} FLOPs have fewer"
    if len({*registered}) < FEWEST_BUDGETS:
        return f"a fit needs {FEWEST_BUDGETS} budgets; {len({*registered})} are registered"
    losses = {size.row: len(size.losses) for sizes in budgets.values() for size in sizes}
    if lacking := [name for name in rows if losses.get(name, 0) < len(registration["seeds"])]:
        names = f"{', '.join(lacking[:3])}{' and others' if len(lacking) > 3 else ''}"
        return f"a fit needs the loss of every registered run; {names} lack{'s' * (len(lacking) == 1)} seeds"
    return _control_problem(registration, cells, budgets) or ScalingFit.of(budgets, max(registered))


def _control_problem(registration: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], budgets: Budgets) -> str:
    """Return which size is not better than the control row in every seed; "" if all are, or no claim has a metric."""
    stage, score = registration["claims"][0]["metric"].split("/") if registration["claims"] else ("", "")
    control = [
        cell["scores"][score]
        for cell in cells
        if (cell["row"], cell["stage"]) == (registration["control"], stage) and score in cell["scores"]
    ]
    if not control:
        return f"the control row, {registration['control']}, has no {stage}/{score}; run it first"
    worst = max((size for sizes in budgets.values() for size in sizes), key=lambda size: max(size.losses))
    return f"{worst.row} is not better than the control row in every seed" if max(worst.losses) >= min(control) else ""


def judge_scaling_claims(
    registration: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], floors: Sequence[Mapping[str, Any]] = ()
) -> list[dict[str, Any]]:
    """Return the "claims" of experiment.json, as `eval.experiments.analysis.verdicts.judge` does.

    A claim is about the statistic of its id; see `STATISTICS`.
    """
    fit = fit_scaling(registration, cells)
    drafts = [
        FitDraft(claim=claim, reason=fit) if isinstance(fit, str) else STATISTICS[claim["id"]](claim, fit)
        for claim in registration["claims"]
    ]
    return judge_fit_claims(registration, drafts, 0 if isinstance(fit, str) else fit.seeds)


def _inner_minima(claim: Mapping[str, Any], fit: ScalingFit) -> FitDraft:
    """Compare the number of budgets with an inner minimum with the number that is needed."""
    return count_inner_minima(claim, fit.inner_p, fit.inner_opposite_p)


def _exponent_claim(target: float, counting: Counting, claim: Mapping[str, Any], fit: ScalingFit) -> FitDraft:
    """Compare an exponent with a published one."""
    exponent = fit.exponent(counting)
    if exponent is None:
        text = f"fewer than {FEWEST_BUDGETS} of {len(fit.budgets)} budgets have an inner minimum"
        return FitDraft(claim=claim, reason=f"{text}, so there are too few optima to fit")
    low, high = exponent.interval()
    text = f"exponent {exponent.value:.3f}, 95% interval {low:.3f} to {high:.3f} ({counting.label})"
    return compare_estimate(claim, exponent.minus(target), text)


def _prediction(claim: Mapping[str, Any], fit: ScalingFit) -> FitDraft:
    """Compare the predicted and the measured loss of the held-out budget, by their ratio."""
    error = fit.prediction_error()
    if error is None:
        what = "the fit to the other budgets has no optimum" if fit.has_minimum[-1] else "there is no inner minimum to predict"
        return FitDraft(claim=claim, reason=f"{what} at the held-out budget, {fit.held_out:g} FLOPs")
    worst = max(fit.size_errors(), key=abs)
    text = f"at {fit.held_out:g} FLOPs the predicted optimal loss differs by {error.value:+.2%}, and that of a size by up to "
    return compare_estimate(claim, error, f"{text}{worst:+.2%}")


STATISTICS: Mapping[str, Callable[[Mapping[str, Any], ScalingFit], FitDraft]] = {
    "inner_minimum": _inner_minima,
    "below_kaplan": functools.partial(_exponent_claim, KAPLAN_EXPONENT, KAPLAN),
    "chinchilla": functools.partial(_exponent_claim, HOFFMANN_EXPONENT, HOFFMANN),
    "prediction": _prediction,
}
"""Id of a claim -> the function that compares its statistic with its number."""

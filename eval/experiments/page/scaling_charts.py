"""Charts and tables of a scaling experiment: curves of equal FLOPs, optimal sizes, exponents and predictions."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from eval.experiments.analysis.family_exponents import fit_families
from eval.experiments.analysis.scaling_fit import ScalingFit
from eval.experiments.analysis.scaling_runs import COUNTINGS, HOFFMANN, KAPLAN, Counting
from eval.experiments.analysis.seed_values import find_seed_metric
from eval.experiments.page.experiment_charts import COLOURS
from eval.experiments.page.experiment_tables import Result
from eval.pages.charts import INK, Figure, format_thousands
from eval.pages.html_page import Block, LinedTable, Plots

NOTE = (
    "Dots are seeds, lines the parabolas over log N, and crosses their minima. A parabola without a cross has no inner minimum "
    "by the test."
)
HELD_OUT_NOTE = "The largest budget is held out of the fit that predicts its loss."
COUNTING_NOTE = (
    "Runs of a budget have equal FLOPs with the last layer. For a counting without it, their losses are moved to equal FLOPs by "
    "the parametric fit."
)


def scaling_blocks(result: Result) -> list[Block]:
    """Return the figures and tables of a result that is judged by fits; none for others, and for families with too few runs."""
    if not any(claim.get("test") == "fit" for claim in result.get("claims") or ()):
        return []
    families = fit_families(result["registration"], result["cells"])
    fits = {family: fit for family, fit in families.items() if not isinstance(fit, str)}
    label = find_seed_metric(result["registration"]["claims"][0]["metric"]).title
    if not fits:
        return []
    if len(families) > 1:
        curves = [isoflop_figure(fit, f"{family}, {label[0].lower()}{label[1:]}") for family, fit in fits.items()]
        optima = optimum_figure({family: (fit, HOFFMANN) for family, fit in fits.items()})
        return [Plots([*curves, optima], NOTE), exponent_table(fits), COUNTING_NOTE]
    (fit,) = fits.values()
    optima = optimum_figure({"Hoffmann's counting": (fit, HOFFMANN), "Kaplan's counting": (fit, KAPLAN)})
    figures = Plots([isoflop_figure(fit, label, fit.held_out), optima], f"{NOTE} {HELD_OUT_NOTE}")
    return [figures, exponent_table({"": fit}), COUNTING_NOTE, prediction_table(fit)]


def isoflop_figure(fit: ScalingFit, label: str, held_out: float | None = None) -> Figure:
    """Return the losses over N, by Hoffmann's counting, with the parabola and the minimum of each budget.

    Args:
        held_out: the budget whose loss is predicted by the others, if one is.
    """
    _, curves, parabolas = fit.counted(HOFFMANN)
    kinds = dict(zip(fit.budgets, (list(COLOURS) * len(fit.budgets))[: len(fit.budgets)], strict=True))

    def draw(axes: Any) -> None:
        for sizes, curve, parabola, kind, inner in zip(
            fit.budgets.values(), curves, parabolas, kinds.values(), fit.has_minimum, strict=True
        ):
            colour = COLOURS[kind]
            for size, place in zip(sizes, np.exp(curve.log_sizes), strict=True):
                axes.plot([place] * len(size.losses), size.losses, "o", color=colour, markersize=3.5, alpha=0.7)
            x = np.linspace(curve.log_sizes[0], curve.log_sizes[-1], 60)
            axes.plot(np.exp(x), np.polyval(parabola.coefficients, x - parabola.center), color=colour)
            if inner:
                axes.plot(np.exp(parabola.minimum), parabola.loss, "x", color=INK, markersize=8)
        axes.set_xscale("log")
        _label_log_axis(axes.xaxis, "parameters with embeddings")

    minima = [
        f"{budget:g} FLOPs: {np.exp(parabola.minimum):,.0f} parameters, {label} {parabola.loss:.4g}"
        if inner
        else f"{budget:g} FLOPs: no inner minimum"
        for budget, parabola, inner in zip(fit.budgets, parabolas, fit.has_minimum, strict=True)
    ]
    keys = {f"{budget:g} FLOPs{', held out' if budget == held_out else ''}": kind for budget, kind in kinds.items()}
    return Figure(f"{label} over parameters at equal FLOPs", draw, f"Curves of equal FLOPs. {'; '.join(minima)}", keys)


def optimum_figure(lines: Mapping[str, tuple[ScalingFit, Counting]]) -> Figure:
    """Return the optimal N over C with lines of the fitted exponents.

    Args:
        lines: name of a line -> the fit and the way of counting.
    """
    exponents = {name: fit.exponent(counting) for name, (fit, counting) in lines.items()}
    kinds = dict(zip(lines, COLOURS, strict=False))

    def draw(axes: Any) -> None:
        for name, (fit, counting) in lines.items():
            (log_flops, curves, parabolas), exponent, colour = fit.counted(counting), exponents[name], COLOURS[kinds[name]]
            inside = [
                inner and curve.log_sizes[0] < parabola.minimum < curve.log_sizes[-1]
                for inner, curve, parabola in zip(fit.has_minimum, curves, parabolas, strict=True)
            ]
            x, y = (np.array(values)[np.array(inside)] for values in (log_flops, [parabola.minimum for parabola in parabolas]))
            axes.plot(np.exp(x), np.exp(y), "o", color=colour)
            if exponent is not None:
                axes.plot(np.exp(x), np.exp(y.mean() + exponent.value * (x - x.mean())), color=colour)
        axes.set(xscale="log", yscale="log")
        _label_log_axis(axes.yaxis, "optimal parameters")
        _label_log_axis(axes.xaxis, "training FLOPs")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0e}".replace("e+", "e"))

    words = "; ".join(
        f"{name}: {'no exponent' if exponent is None else f'exponent {exponent.value:.3f}'}"
        for name, exponent in exponents.items()
    )
    return Figure("Optimal parameters over FLOPs", draw, f"Optimal sizes. {words}", kinds)


def _label_log_axis(axis: Any, title: str) -> None:
    from matplotlib.ticker import LogLocator

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_minor_formatter(lambda *_: "")
    axis.set_major_formatter(format_thousands)
    axis.set_label_text(title)


def exponent_table(fits: Mapping[str, ScalingFit]) -> LinedTable:
    """Return the exponent of N_opt over C of each family by each way of counting, and that of the parametric loss."""
    rows = []
    for family, fit in fits.items():
        start = f"{family}, " if family else ""
        for counting in COUNTINGS:
            exponent, name = fit.exponent(counting), {HOFFMANN: "Hoffmann", KAPLAN: "Kaplan"}.get(counting, "")
            cells = [["no inner minima"], ["-"]]
            if exponent is not None:
                low, high = exponent.interval()
                cells = [[f"{exponent.value:.3f}"], [f"{low:.3f} to {high:.3f}", f"{exponent.degrees:.0f} degrees of freedom"]]
            rows.append([[f"{start}{counting.label}", *([name] if name else [])], *cells])
        loss = fit.loss
        law = f"L = {loss.E:.3g} + {loss.A:.3g} / N^{loss.alpha:.3f} + {loss.B:.3g} / D^{loss.beta:.3f}"
        rows.append([[f"{start}parametric loss, N with embeddings, C = 6 N D", law], [f"{loss.exponent:.3f}"], ["-"]])
    return LinedTable(head=["Counting", "Exponent of optimal N over C", "95% interval"], rows=rows)


def prediction_table(fit: ScalingFit) -> LinedTable:
    """Return the predicted and the measured loss of each size at the held-out budget."""
    rows = [
        [[size.row], [f"{np.mean(size.losses):.4f}"], [f"{np.mean(size.losses) * (1 + error):.4f}"], [f"{error:+.2%}"]]
        for size, error in zip(fit.budgets[fit.held_out], fit.size_errors(), strict=True)
    ]
    return LinedTable(head=[f"{fit.held_out:g} FLOPs, held out", "Measured", "Predicted", "Error"], rows=rows)

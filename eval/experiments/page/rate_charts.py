"""Charts of an experiment on learning rates: the loss over the rate of narrow and wide models of each family."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from eval.experiments.analysis.best_rates import RateCurve, read_rate_curves
from eval.experiments.analysis.seed_values import find_seed_metric
from eval.experiments.page.experiment_charts import COLOURS
from eval.experiments.page.experiment_tables import Result
from eval.pages.charts import Figure
from eval.pages.html_page import Block, Plots

NOTE = "Dots are seeds, lines their means. Vertical lines are the mean best rates; runs that diverged have no dot."
MODELS = {"narrow": "one", "transferred": "two", "standard": "three"}
"""Model -> key of its colour."""


def rate_blocks(result: Result) -> list[Block]:
    """Return a figure for each family of a result that is judged by best rates; none for others and for too few runs."""
    if not any(claim.get("test") == "rates" for claim in result.get("claims") or ()):
        return []
    label = find_seed_metric(result["registration"]["claims"][0]["metric"]).title
    families = read_rate_curves(result["registration"], result["cells"])
    complete = {
        family: {model: curve for model, curve in curves.items() if not isinstance(curve, str)}
        for family, curves in families.items()
    }
    figures = [rate_figure(family, curves, label) for family, curves in complete.items() if curves]
    return [Plots(figures, NOTE)] if figures else []


def rate_figure(family: str, curves: Mapping[str, RateCurve], label: str) -> Figure:
    """Return the losses of a family over the learning rate."""

    def draw(axes: Any) -> None:
        for model, curve in curves.items():
            colour, finite = COLOURS[MODELS[model]], np.where(np.isfinite(curve.losses), curve.losses, np.nan)
            rates = 2.0**curve.log_rates
            for losses in finite:
                axes.plot(rates, losses, "o", color=colour, markersize=3, alpha=0.6)
            axes.plot(rates, finite.mean(0), color=colour)
            axes.axvline(2.0 ** curve.best.mean(), color=colour, linestyle=(0, (4, 2)), linewidth=0.8)
        axes.set_xscale("log")
        axes.set_xlabel("learning rate")

    best = "; ".join(f"{model}: {2.0 ** curve.best.mean():.3g}" for model, curve in curves.items())
    title = f"{family}, {label[0].lower()}{label[1:]} over the learning rate"
    return Figure(title, draw, f"Losses of {family}. Best rates: {best}", {model: MODELS[model] for model in curves})

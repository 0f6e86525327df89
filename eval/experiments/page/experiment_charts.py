"""Validation curves on the page of an experiment, in the metrics of its claims and in others."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from eval.experiments.analysis.seed_values import find_seed_metric
from eval.experiments.page.experiment_tables import Result, judged_metrics, metric_title, row_names
from eval.pages.charts import FIVE, FOUR, INK, ONE, SIX, THREE, TWO, Figure, format_thousands

COLOURS = {"one": ONE, "two": TWO, "four": FOUR, "five": FIVE, "six": SIX, "three": THREE}
"""Classes of the style sheet, and the colours of drawings, in the order in which rows take them."""
AXES = ("input tokens", "training FLOPs")
"""Titles of the horizontal axes: the first columns of a cell's curves."""
MAIN = ("masked_loss", "loss")
"""Scores of a stage that no claim is judged by, of which the first that was validated is drawn."""
ABOVE = 0.35
"""Room above the worst row's last value, as a share of the height below it: the first validations are far above the rest."""

WIDE_RANGE = 8
"""Ratio of the longest run to the shortest above which the horizontal axis is logarithmic."""


@dataclasses.dataclass(frozen=True)
class _Line:
    """The validations of a run."""

    points: np.ndarray
    """[validations, 2]: position and value."""
    diverged: bool


def judged_curves(result: Result) -> list[Figure]:
    """Return the curves of each judged metric that runs were validated in, over input tokens and over FLOPs."""
    metrics = [metric.partition("/") for metric in judged_metrics(result)]
    figures = [_curve_figure(result, stage, name, column) for stage, _, name in metrics for column in range(len(AXES))]
    return [figure for figure in figures if figure]


def other_curves(result: Result) -> list[Figure]:
    """Return the validation losses over input tokens of stages that were validated and that no claim is judged by."""
    judged, metrics = judged_metrics(result), {}
    for cell in result["cells"]:
        names = list(cell.get("curves") or ())
        if names and not any(f"{cell['stage']}/{name}" in judged for name in names):
            metrics.setdefault(cell["stage"], next((name for name in MAIN if name in names), names[0]))
    figures = [_curve_figure(result, stage, name, 0) for stage, name in metrics.items()]
    return [figure for figure in figures if figure]


def metrics_without_curves(result: Result) -> list[str]:
    """Return the titles of the judged metrics that no run was validated in, if any run has ended."""
    validated = {f"{cell['stage']}/{name}" for cell in result["cells"] for name in cell.get("curves") or ()}
    scored = {f"{cell['stage']}/{name}" for cell in result["cells"] for name in cell["scores"]}
    return [metric_title(metric) for metric in judged_metrics(result) if metric in scored - validated]


def _points(curve: Sequence[Sequence[float | int | None]], column: int) -> np.ndarray:
    """Return (position, value) of a curve of [input tokens, FLOPs, value], without points that lack one."""
    pairs = [(x, y) for x, y in ((line[column], line[2]) for line in curve) if x is not None and y is not None]
    return np.array([pair for pair in pairs if all(map(math.isfinite, pair))], np.float64).reshape(-1, 2)


def floor_values(result: Result, metric: str) -> dict[str, float]:
    """Return the values of a metric beyond which a model has learned something, by the names of the floors."""
    return {floor["name"]: floor["value"] for floor in result.get("floors") or () if floor["metric"] == metric}


def _curve_figure(result: Result, stage: str, score: str, column: int) -> Figure | None:
    """Return the figure of a score of a stage, over a column of its curves; None if no run has such a curve."""
    metric, axis, names, rows = f"{stage}/{score}", AXES[column], row_names(result), {}
    for cell in result["cells"]:
        points = _points((cell.get("curves") or {}).get(score) or (), column)
        if cell["stage"] == stage and len(points):
            rows.setdefault(cell["row"], []).append(_Line(points, cell["status"] == "diverged"))
    if not rows:
        return None
    floors = floor_values(result, metric)
    # A row has the same colour in all figures.
    place = {name: i for i, name in enumerate(names)}
    kinds = {name: list(COLOURS)[(place[name] - 1) % len(COLOURS)] for name in rows}
    dashed = {name for name in rows if place[name] > len(COLOURS)}
    sign = -1.0 if judged_metrics(result).get(metric, find_seed_metric(metric)).better == "higher" else 1.0
    bottom, top = _frame(list(rows.values()), list(floors.values()), sign)
    column_is_tokens = column == 0

    def draw(axes: Any) -> None:
        for name, lines in rows.items():
            style: Any = {"color": COLOURS[kinds[name]], "linestyle": (0, (4, 2)) if name in dashed else "solid"}
            for points in (line.points for line in lines):
                axes.plot(*points.T, linewidth=0.9, alpha=0.4, marker="o" if len(points) == 1 else "", **style)
            if len(mean := _mean_curve(lines)):
                axes.plot(*mean.T, linewidth=2.4, **style)
        for value in floors.values():
            axes.axhline(value, color=INK, linewidth=1.2, linestyle=(0, (6, 3)))
        axes.set_ylim(bottom, top)
        ends = [line.points[-1, 0] for lines in rows.values() for line in lines if len(line.points) > 1]
        if ends and max(ends) > WIDE_RANGE * min(ends) > 0:
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(lambda *_: "")
        axes.xaxis.set_major_formatter(
            format_thousands if column_is_tokens else lambda value, _: f"{value:.2g}".replace("e+", "e")
        )
        axes.set_xlabel(axis)

    ends = "; ".join(
        f"{names[name]} ends at {np.mean([line.points[-1, 1] for line in lines]):.4g}" for name, lines in rows.items()
    )
    title = f"{find_seed_metric(metric).title}, {stage}, over {axis}"
    keys = {names[name]: f"{kinds[name]} dashed" if name in dashed else kinds[name] for name in rows}
    return Figure(title, draw, f"{title}. {ends}", keys | dict.fromkeys(floors, "ink dashed"))


def _mean_curve(lines: Sequence[_Line]) -> np.ndarray:
    """Return the mean curve of the seeds that did not diverge, as long as the shortest curve; empty for fewer than two seeds."""
    curves = [line.points for line in lines if not line.diverged]
    count = min(map(len, curves), default=0)
    return np.mean([points[:count] for points in curves], axis=0) if len(curves) > 1 else np.zeros((0, 2))


def _frame(rows: Sequence[Sequence[_Line]], floors: Sequence[float], sign: float) -> tuple[float, float]:
    """Return bottom and top of a frame, such that neither the first validations nor a diverged seed flatten the other curves.

    Args:
        sign: 1 if lower values are better, so that a curve begins at the top, and -1 if higher ones are.
    """
    values = sign * np.concatenate([np.array(floors), *(line.points[:, 1] for lines in rows for line in lines)])
    # An untrained control has one validation, far from the others.
    trained = [lines for lines in rows if max(len(line.points) for line in lines) > 1] or rows
    ends = [float(np.median([sign * line.points[-1, 1] for line in lines])) for lines in trained]
    worst = max([*(sign * value for value in floors), *ends])
    # If all rows end at the same value, the frame would have no height: it also includes the last three quarters of validations.
    usual = float(np.quantile(np.concatenate([sign * line.points[:, 1] for lines in trained for line in lines]), 0.75))
    best, first = float(values.min()), float(values.max())
    first = min(first, max(worst + ABOVE * (worst - best), usual))
    margin = 0.06 * (first - best) or 0.1 * abs(first) or 1.0
    low, high = sorted((sign * (best - margin), sign * (first + margin)))
    return low, high

"""Charts on the page of an experiment: validation curves, and differences in units of their noise."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.experiments.analysis.seed_values import find_seed_metric
from eval.experiments.page.experiment_tables import Result, claim_statement, joined_claims, row_names
from eval.pages.charts import FIVE, FOUR, INK, MUTED, ONE, SIX, THREE, TWO, Figure, format_thousands

COLOURS = {"one": ONE, "two": TWO, "four": FOUR, "five": FIVE, "six": SIX, "three": THREE}
"""Classes of the style sheet, and the colours of drawings, in the order in which rows take them."""
AXES = ("input tokens", "training FLOPs")
"""Titles of the horizontal axes: the first columns of a cell's curve."""
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


def validation_curves(result: Result) -> list[Figure]:
    """Return, of each stage with validations, figures over input tokens and over FLOPs, with a colour for each row."""
    stages = dict.fromkeys(cell["stage"] for cell in result["cells"] if cell.get("curve"))
    figures = []
    for stage in stages:
        for column, axis in enumerate(AXES):
            rows: dict[str, list[_Line]] = {}
            for cell in result["cells"]:
                points = _points(cell.get("curve") or (), column)
                if cell["stage"] == stage and len(points):
                    rows.setdefault(cell["row"], []).append(_Line(points, cell["status"] == "diverged"))
            if rows:
                figures.append(_curve_figure(stage, axis, rows, _floors(result, stage), row_names(result)))
    return figures


def _points(curve: Sequence[Sequence[float | None]], column: int) -> np.ndarray:
    """Return (position, value) of a curve of [input tokens, FLOPs, value], without points that lack one."""
    pairs = [(x, y) for x, y in ((line[column], line[2]) for line in curve) if x is not None and y is not None]
    return np.array([pair for pair in pairs if all(map(math.isfinite, pair))], np.float64).reshape(-1, 2)


def _floors(result: Result, stage: str) -> dict[str, float]:
    """Return the losses below which a model of a stage has learned something: floors, and the unigram loss of its own text."""
    floors = [floor for floor in result.get("floors") or () if floor["metric"].startswith(f"{stage}/")]
    losses = {floor["name"]: floor["value"] for floor in floors if floor["metric"].endswith("loss")}
    own = [
        cell["scores"]["unigram_loss"] for cell in result["cells"] if cell["stage"] == stage and "unigram_loss" in cell["scores"]
    ]
    return losses or ({"unigram loss": float(np.mean(own))} if own else {})


def _curve_figure(
    stage: str, axis: str, rows: Mapping[str, list[_Line]], floors: Mapping[str, float], names: Mapping[str, str]
) -> Figure:
    # A row has the same colour in all figures.
    place = {name: i for i, name in enumerate(names)}
    kinds = {name: list(COLOURS)[(place[name] - 1) % len(COLOURS)] for name in rows}
    dashed = {name for name in rows if place[name] > len(COLOURS)}
    bottom, top = _frame(list(rows.values()), list(floors.values()))

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

    column_is_tokens = axis == AXES[0]
    ends = "; ".join(
        f"{names[name]} ends at {np.mean([line.points[-1, 1] for line in lines]):.4g}" for name, lines in rows.items()
    )
    label = f"Validation loss of {stage} over {axis}. {ends}"
    keys = {names[name]: f"{kinds[name]} dashed" if name in dashed else kinds[name] for name in rows}
    return Figure(f"{stage}: validation loss over {axis}", draw, label, keys | dict.fromkeys(floors, "ink dashed"))


def _mean_curve(lines: Sequence[_Line]) -> np.ndarray:
    """Return the mean curve of the seeds that did not diverge, as long as the shortest curve; empty for fewer than two seeds."""
    curves = [line.points for line in lines if not line.diverged]
    count = min(map(len, curves), default=0)
    return np.mean([points[:count] for points in curves], axis=0) if len(curves) > 1 else np.zeros((0, 2))


def _frame(rows: Sequence[Sequence[_Line]], floors: Sequence[float]) -> tuple[float, float]:
    """Return bottom and top of a frame, such that neither the first validations nor a diverged seed flatten the other curves."""
    values = np.concatenate([np.array(floors), *(line.points[:, 1] for lines in rows for line in lines)])
    # An untrained control has one validation, far above the rest.
    trained = [lines for lines in rows if max(len(line.points) for line in lines) > 1] or rows
    worst = max([*floors, *(float(np.median([line.points[-1, 1] for line in lines])) for lines in trained)])
    # If all rows end at the same value, the frame would have no height: it also includes the last three quarters of validations.
    usual = float(np.quantile(np.concatenate([line.points[:, 1] for lines in trained for line in lines]), 0.75))
    bottom, top = float(values.min()), float(values.max())
    top = min(top, max(worst + ABOVE * (worst - bottom), usual))
    margin = 0.06 * (top - bottom) or 0.1 * abs(top) or 1.0
    return bottom - margin, top + margin


def forest_plot(result: Result) -> list[Figure]:
    """Return the figure of the differences of the claims, in units of the standard deviation over seeds.

    Values to the right favour the claim. The paper's values and ours are not on one axis: the paper's difference is drawn only if
    its noise is recorded (`paper_noise` of the claim), in units of that noise.
    """
    claims = [claim for claim in joined_claims(result) if claim["estimate"] is not None and claim.get("unit")]
    if not claims:
        return []
    lines = [_ForestLine.of(claim) for claim in claims]
    several = len({claim["metric"] for claim in claims}) > 1
    titles = [
        claim_statement(claim) + (f", {find_seed_metric(claim['metric'], claim.get('better')).label}" if several else "")
        for claim in claims
    ]
    published = any(line.paper is not None for line in lines)

    def draw(axes: Any, names: Sequence[str] = titles) -> None:
        _draw_forest(axes, lines)
        axes.set_yticks(range(len(lines)), names)

    words = "; ".join(f"{title}: {line.value:+.1f}" for title, line in zip(titles, lines, strict=True))
    label = f"Differences in standard deviations over seeds. {words}"
    keys = {"here, with its 95% bound": "one dots"} | ({"paper": "two dots"} if published else {})
    keys |= {"margin of an equivalence": "three"} if any(line.margin for line in lines) else {}
    remark = "; ".join(f"{i + 1}: {title}" for i, title in enumerate(titles))
    title = "Differences in standard deviations over seeds; to the right: in favour of the claim"
    numbered = functools.partial(draw, names=[f"{i + 1}" for i in range(len(lines))])
    height = 1.0 + 0.42 * len(lines)
    return [Figure(title, draw, label, keys, across=True, height=height, remark=remark, draw_narrow=numbered)]


@dataclasses.dataclass(frozen=True)
class _ForestLine:
    """A claim in units of its noise."""

    value: float
    bound: float
    margin: float | None
    """Margin of an equivalence, which holds between -margin and +margin; None for a direction."""
    paper: float | None

    @classmethod
    def of(cls, claim: Mapping[str, Any]) -> "_ForestLine":
        unit, noise, sign = claim["unit"], claim.get("paper_noise"), -1 if claim["kind"] == "less" else 1
        equivalent, value = claim["kind"] == "equivalent", sign * claim["estimate"] / unit
        bound = value if claim["bound"] is None else sign * claim["bound"] / unit
        paper = claim["paper_difference"] * sign / noise if noise and claim.get("paper_difference") is not None else None
        return cls(
            value, math.copysign(bound, value) if equivalent else bound, claim["margin"] / unit if equivalent else None, paper
        )


def _draw_forest(axes: Any, lines: Sequence[_ForestLine]) -> None:
    axes.axvline(0, color=MUTED, linewidth=1)
    for place, line in enumerate(lines):
        axes.plot([line.value, line.bound], [place, place], color=ONE, linewidth=2)
        axes.plot([line.value], [place], "o", color=ONE, markersize=7)
        if line.margin is not None:
            axes.plot([-line.margin, line.margin], [place + 0.22] * 2, "|-", color=THREE, markersize=7, linewidth=1)
        if line.paper is not None:
            axes.plot([line.paper], [place - 0.22], "o", color=TWO, markersize=6)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.margins(x=0.08)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("standard deviations over seeds")

"""Charts of single seeds on the page of an experiment: the value of every run, and differences with their intervals."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.experiments.analysis.seed_values import SeedValues, seed_values
from eval.experiments.analysis.significance_tests import mean_and_half_width
from eval.experiments.analysis.verdicts import claim_references
from eval.experiments.page.experiment_charts import floor_values
from eval.experiments.page.experiment_tables import (
    Result,
    claim_statement,
    joined_claims,
    judged_metrics,
    measured_claims,
    stuck_seeds,
)
from eval.pages.charts import FIVE, FOUR, GRID, INK, MUTED, ONE, SIX, THREE, Figure
from train.run.metric_definitions import Metric

LOOKS = {
    **{"reproduced": "good", "equivalent": "good", "direction only": "part", "contradicted": "bad"},
    **{"not shown": "open", "depends on the metric": "mixed"},
}
"""Verdict -> its class in the style sheet; that of others is none."""
VERDICT_COLOURS = {"good": FOUR, "part": ONE, "bad": THREE, "open": SIX, "mixed": FIVE, "none": MUTED}
KEYS = {"good": "four", "part": "one", "bad": "three", "open": "six", "mixed": "five", "none": "muted"}
"""Class of a verdict -> that of its colour in a legend."""
REACH = 2.0
"""Distance of the control and of floors from the other rows, in units of the range of these rows, up to which all are drawn to
scale; what is farther away is named at the edge."""


@dataclasses.dataclass(frozen=True)
class _Strip:
    """The seeds of a row."""

    name: str
    seeds: SeedValues
    stuck: set[int]
    """Seeds that did not learn."""
    is_control: bool

    @property
    def numbers(self) -> list[float]:
        return list(self.seeds.values.values())


def seed_strips(result: Result) -> list[Figure]:
    """Return a figure per judged metric: each seed of each row as a dot, means with 95% intervals, and floors as lines."""
    registration = result["registration"]
    figures = []
    for metric, definition in judged_metrics(result).items():
        strips = []
        for name in (row["name"] for row in registration["rows"]):
            seeds = seed_values(registration, result["cells"], name, metric)
            strips.append(_Strip(name, seeds, stuck_seeds(result, metric, seeds), name == registration["control"]))
        strips = [strip for strip in strips if strip.numbers]
        if strips:
            floors = floor_values(result, metric) or _reported_floors(result, metric)
            figures.append(_strip_figure(metric, definition, strips, floors))
    return [dataclasses.replace(figure, across=len(figures) == 1) for figure in figures]


def _reported_floors(result: Result, metric: str) -> dict[str, float]:
    """Return the baselines that are reported with the scores of the runs, where they are the floor of a claim."""
    floors = [claim["floor"] for claim in joined_claims(result) if claim["metric"] == metric and claim["floor"]]
    declared = ("the control row", "the floor ")
    return {floor["name"].removeprefix("the "): floor["value"] for floor in floors if not floor["name"].startswith(declared)}


def _strip_figure(metric: str, definition: Metric, strips: Sequence[_Strip], floors: Mapping[str, float]) -> Figure:
    controls = {f"mean of the control {strip.name}": float(np.mean(strip.numbers)) for strip in strips if strip.is_control}
    low, high = _strip_range(strips, [*controls.values(), *floors.values()])
    outside = {name: value for name, value in floors.items() if not low <= value <= high}
    controls, floors = ({name: x for name, x in lines.items() if low <= x <= high} for lines in (controls, floors))

    def draw(axes: Any) -> None:
        axes.set_xlim(low, high)
        for lines, colour in ((controls, MUTED), (floors, INK)):
            for value in lines.values():
                axes.axvline(value, color=colour, linewidth=1.2, linestyle=(0, (6, 3)))
        for place, strip in enumerate(strips):
            _draw_strip(axes, place, strip, definition, (low, high))
        for place, (name, value) in enumerate(outside.items(), len(strips)):
            _edge_text(axes, place, f"{name} {_axis_number(definition, value)}", right=value > high)
        axes.set_yticks(range(len(strips)), [strip.name for strip in strips])
        axes.set_ylim(len(strips) + len(outside) - 0.5, -0.5)
        _quiet_axes(axes, definition)

    stuck = any(strip.stuck for strip in strips if not strip.is_control)
    title = f"Every seed: {definition.label}, {metric.partition('/')[0]}"
    words = "; ".join(f"{strip.name}: {', '.join(map(definition.show, strip.numbers))}" for strip in strips)
    keys = {"a seed": "one dots"} | ({"a seed that did not learn": "three cross"} if stuck else {})
    keys |= {"mean and 95% interval": "ink"} | dict.fromkeys(controls, "muted dashed") | dict.fromkeys(floors, "ink dashed")
    return Figure(title, draw, f"{title}. {words}", keys, height=1.0 + 0.42 * (len(strips) + len(outside)))


def _strip_range(strips: Sequence[_Strip], references: Sequence[float]) -> tuple[float, float]:
    """Return the range of the axis: all rows but the control with their intervals, and the references that are near enough."""
    rows = [strip for strip in strips if not strip.is_control] or strips
    values = [value for strip in rows for value in strip.numbers]
    low, high = min(values), max(values)
    span = high - low
    # The interval of few seeds can be many times as wide as their range; it is then cut off.
    intervals = [mean_and_half_width(strip.numbers) for strip in rows]
    ends = [mean + sign * half for mean, half in intervals if half for sign in (-1, 1)]
    references = [value for value in references if low - REACH * span <= value <= high + REACH * span]
    low, high = (
        min([low, *references, max(low - span, min(ends, default=low))]),
        max([high, *references, min(high + span, max(ends, default=high))]),
    )
    pad = 0.06 * (high - low) or 0.01 * abs(high) or 1.0
    return low - pad, high + pad


def _draw_strip(axes: Any, place: int, strip: _Strip, definition: Metric, limits: tuple[float, float]) -> None:
    inside = {seed: value for seed, value in strip.seeds.values.items() if limits[0] <= value <= limits[1]}
    heights = dict(zip(strip.seeds.values, np.linspace(-0.3, 0.1, len(strip.numbers)), strict=True))
    for seed, value in inside.items():
        stuck = seed in strip.stuck and not strip.is_control
        style = {"marker": "x", "color": THREE} if stuck else {"marker": "o", "color": MUTED if strip.is_control else ONE}
        axes.plot([value], [place + heights[seed]], markersize=6, alpha=1.0 if stuck else 0.7, linestyle="", **style)
    mean, half = mean_and_half_width(strip.numbers)
    if limits[0] <= mean <= limits[1]:
        axes.plot([mean - (half or 0), mean + (half or 0)], [place + 0.3] * 2, color=INK, linewidth=1.6)
        axes.plot([mean], [place + 0.3], "|", color=INK, markersize=9, markeredgewidth=2)
    if len(inside) < len(strip.numbers):
        name = "control " if strip.is_control else ""
        _edge_text(axes, place, f"{name}{_axis_number(definition, mean)}", right=mean > limits[1])


def _edge_text(axes: Any, place: int, text: str, *, right: bool) -> None:
    """Write a value that is outside the axis at its edge, with an arrow."""
    where, side, words = (
        (0.99, "right", f"{text} \N{RIGHTWARDS ARROW}") if right else (0.01, "left", f"\N{LEFTWARDS ARROW} {text}")
    )
    axes.text(where, place, words, transform=axes.get_yaxis_transform(), ha=side, va="center", color=MUTED, fontsize=9.5)


def _axis_number(definition: Metric, value: float) -> str:
    return f"{metric_unit(definition)[0] * value:.4g}"


def _quiet_axes(axes: Any, definition: Metric) -> None:
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x")
    scale, unit = metric_unit(definition)
    axes.xaxis.set_major_locator(_locator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value * scale:g}")
    axes.set_xlabel(unit)


def _locator() -> Any:
    from eval.pages.charts import tick_locator

    return tick_locator(5)


def metric_unit(definition: Metric) -> tuple[float, str]:
    """Return the factor and the unit in which values of a metric are drawn: nats, bits per byte, or points."""
    label = definition.label
    if label.endswith(("loss", "nats")):
        return 1.0, "nats"
    if definition.better == "higher" and definition.format == ".4f" and label not in ("reward", "reward margin"):
        return 100.0, "points (of 100)"
    return 1.0, "points" if label in ("BLEU", "chrF") else label


def difference_plots(result: Result) -> list[Figure]:
    """Return a figure per judged metric: the difference of each claim with its two-sided 95% interval, and the claim's region.

    The difference is the mean of the row minus that of its reference, in the unit of the metric: on the left side of 0 the row is
    lower, whatever the claim says. Claims that were judged by the shares of seeds that learned have no difference of means here.
    """
    claims = [claim for claim in measured_claims(result) if claim["estimate"] is not None and claim["outcome"] != "shares"]
    # A claim about a fit compares no rows.
    claims = [claim for claim in claims if claim_references(claim)]
    return [
        _difference_figure(metric, definition, of_metric)
        for metric, definition in judged_metrics(result).items()
        if (of_metric := [claim for claim in claims if claim["metric"] == metric])
    ]


def _difference_figure(metric: str, definition: Metric, claims: Sequence[Mapping[str, Any]]) -> Figure:
    looks = [LOOKS.get(claim["verdict"], "none") for claim in claims]
    statements = [f"{claim_statement(claim)}: {claim['verdict']}" for claim in claims]
    scale, unit = metric_unit(definition)

    def draw(axes: Any, names: Sequence[str] = [text.replace(": ", "\n") for text in statements]) -> None:
        low, high = _difference_range(claims)
        axes.set_xlim(low, high)
        for place, (claim, look) in enumerate(zip(claims, looks, strict=True)):
            if claim.get("margin"):
                left, right = claim_region(claim, low, high)
                axes.barh([place], [right - left], left=left, height=0.8, color=GRID, alpha=0.8)
            axes.plot(claim["interval"] or (), [place] * len(claim["interval"] or ()), color=VERDICT_COLOURS[look], linewidth=2.4)
            axes.plot([claim["estimate"]], [place], "o", color=VERDICT_COLOURS[look], markersize=8)
        axes.axvline(0, color=INK, linewidth=1.2)
        axes.set_yticks(range(len(claims)), names)
        axes.set_ylim(len(claims) - 0.4, -0.6)
        _quiet_axes(axes, definition)
        axes.set_xlabel(" \N{MIDDLE DOT} ".join(_side_texts(definition, unit)))

    title = f"Differences in {definition.label}, {metric.partition('/')[0]}: row minus reference"
    words = "; ".join(f"{text}, {claim['estimate'] * scale:+.4g} {unit}" for text, claim in zip(statements, claims, strict=True))
    keys = {claim["verdict"]: f"{KEYS[look]} dots" for claim, look in zip(claims, looks, strict=True)}
    keys |= {"line: two-sided 95% interval": "ink"} if any(claim["interval"] for claim in claims) else {}
    keys |= (
        {"shaded: what the claim says, beyond or within its margin": "faint ink"} if any(c.get("margin") for c in claims) else {}
    )
    remark = "; ".join(f"{i + 1}: {text}" for i, text in enumerate(statements))
    numbered = functools.partial(draw, names=[f"{i + 1}" for i in range(len(claims))])
    height = 1.1 + 0.55 * len(claims)
    return Figure(title, draw, f"{title}. {words}", keys, across=True, height=height, remark=remark, draw_narrow=numbered)


def _side_texts(definition: Metric, unit: str) -> list[str]:
    """Return what the left and the right side of a difference mean, with the unit between them."""
    lower, higher = (" (better)" if definition.better == side else "" for side in ("lower", "higher"))
    return [f"\N{LEFTWARDS ARROW} row lower{lower}", unit, f"row higher{higher} \N{RIGHTWARDS ARROW}"]


def _difference_range(claims: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    values = [0.0]
    for claim in claims:
        values += [claim["estimate"], *(claim["interval"] or ())]
        sides = {"less": (-1,), "greater": (1,)}.get(claim["kind"], (-1, 1))
        values += [sign * claim["margin"] for sign in sides if claim.get("margin")]
    low, high = min(values), max(values)
    pad = 0.1 * (high - low) or 1.0
    return low - pad, high + pad


def claim_region(claim: Mapping[str, Any], low: float, high: float) -> tuple[float, float]:
    """Return the differences between `low` and `high` for which a claim is true: beyond its margin, or within it."""
    margin = claim["margin"]
    return {"less": (low, -margin), "greater": (margin, high)}.get(claim["kind"], (-margin, margin))

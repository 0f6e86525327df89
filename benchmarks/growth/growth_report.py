"""The report of `zoo bench growth`: a plot for each axis, on logarithmic scales, with exponents fitted to it, and tables."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from scipy import stats

from benchmarks.core.result_files import Results
from benchmarks.core.result_page import Form, Report, device_name
from benchmarks.core.result_tables import format_bytes, missing_cell_reasons, percentiles_text, seconds_text, timed_cells
from eval.pages.charts import ONE, THREE, TWO, Figure
from eval.pages.html_page import Plots, Table

UNITS = {"length": "tokens of a row", "layers": "layers", "width": "width", "devices": "devices"}
"""Axis -> the unit of its values."""
QUANTITIES = {"time": "seconds", "memory": "memory", "compilation": "compile_seconds"}
"""Quantity that grows -> its column."""
LOOKS = {"time": (ONE, "one"), "memory": (TWO, "two"), "compilation": (THREE, "three")}
HEAD = ("axis", "value", "time", "20-80 %", "memory", "compile")
REMARK = (
    "Simulated devices share the cores of one machine: their plot shows what splitting a batch costs, not a speed-up. "
    "Memory is the sum over all devices, as XLA planned it."
)


class Exponent(NamedTuple):
    """Exponent b of y = a x^b, and its standard error: None for two points."""

    value: float
    error: float | None
    factor: float
    """a."""

    def __str__(self) -> str:
        return f"{self.value:.2f}" + ("" if self.error is None else f" \N{PLUS-MINUS SIGN} {self.error:.2f}")


def fit_power_law(x: Sequence[float | int], y: Sequence[float | int]) -> Exponent | None:
    """Fit y = a x^b by least squares to the logarithms; return None for fewer than two different x, or values not above 0."""
    if len(set(x)) < 2 or min(*x, *y) <= 0:
        return None
    fit = cast(Any, stats.linregress(np.log(x), np.log(y)))
    return Exponent(float(fit.slope), float(fit.stderr) if len(x) > 2 else None, float(np.exp(fit.intercept)))


def by_axis(results: Results) -> dict[str, list[dict[str, Any]]]:
    """Return the timed cells of each axis, ordered by value."""
    groups: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for cell in sorted(
        timed_cells(results.cells), key=lambda cell: (list(UNITS).index(cell["key"]["axis"]), cell["key"]["value"])
    ):
        groups[cell["key"]["axis"]].append(dict(cell))
    return groups


def fit_exponents(cells: Sequence[Mapping[str, Any]]) -> dict[str, Exponent | None]:
    """Return the exponent of each quantity along an axis."""
    x = [cell["key"]["value"] for cell in cells]
    return {name: fit_power_law(x, [cell[column] for cell in cells]) for name, column in QUANTITIES.items()}


def growth_cells_text(cells: Sequence[Mapping[str, Any]]) -> str:
    """Return the cells of an axis in one line, for the progress display."""
    texts = [f"{cell['key']['value']} {seconds_text(cell['seconds'])}" for cell in timed_cells(cells)]
    failed = len(cells) - len(texts)
    return ", ".join([*texts, *([f"{failed} failed"] if failed else [])])


def growth_report(results: Results, form: Form) -> Report:
    """Return the report, which is the same in every form."""
    request, cells_by_axis = results.options, by_axis(results)
    lead = (
        f"A training step of {request['model']}, {request['batch']} rows, on {device_name(results)}: everything over its value "
        "at the left, both axes logarithmic. Behind each name the exponent b of a x^b and its standard error."
    )
    exponents = [
        [axis, *(str(fitted or "") for fitted in fit_exponents(cells).values())] for axis, cells in cells_by_axis.items()
    ]
    fit_note = "Exponents b of a x^b, fitted to the logarithms, with their standard errors."
    sections = {
        "Growth": [Plots([_plot(axis, cells) for axis, cells in cells_by_axis.items()])],
        "What was not timed": [missing_cell_reasons(results.cells, lambda key: f"{key['axis']} {key['value']}")],
        "Every number": [Table(HEAD, _rows(cells_by_axis)), REMARK if "devices" in cells_by_axis else ""],
        "Exponents": [Table(("grows with", *QUANTITIES), exponents), fit_note],
    }
    return Report(lead, sections)


def _rows(cells_by_axis: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[list[str]]:
    """Return a row for each cell: see `HEAD`."""
    rows = []
    for axis, cells in cells_by_axis.items():
        for cell in cells:
            row = [axis, f"{cell['key']['value']:,}", seconds_text(cell["seconds"]), percentiles_text(cell)]
            rows.append([*row, format_bytes(cell["memory"]), f"{cell['compile_seconds']:.1f} s"])
    return rows


def _plot(axis: str, cells: Sequence[Mapping[str, Any]]) -> Figure:
    x = [cell["key"]["value"] for cell in cells]
    fits = fit_exponents(cells)

    def draw(axes: Any) -> None:
        from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

        axes.set_xscale("log")
        axes.set_yscale("log")
        for name, column in QUANTITIES.items():
            y = [cell[column] for cell in cells]
            if not y[0]:
                continue
            axes.plot(x, [value / y[0] for value in y], "o", color=LOOKS[name][0], markersize=4)
            if fit := fits[name]:
                axes.plot(x, [fit.factor * value**fit.value / y[0] for value in x], color=LOOKS[name][0])
        axes.xaxis.set_major_locator(FixedLocator(x))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.margins(x=0.04, y=0.08)
        axes.set_xlabel(UNITS[axis])

    keys = {f"{name} {fit}": f"{LOOKS[name][1]} dots" for name, fit in fits.items() if fit}
    description = "; ".join(f"{name}: exponent {fit}" for name, fit in fits.items() if fit)
    return Figure(axis.capitalize(), draw, f"Growth with {axis}. {description}", keys)

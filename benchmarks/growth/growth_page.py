"""The page of `zoo bench growth`: a plot for each axis, on logarithmic scales, with the fitted exponents."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.core.html_page import Figure, Plots, Table
from benchmarks.core.result_files import Results
from benchmarks.core.result_page import device, render_results
from benchmarks.growth import growth_tables
from benchmarks.growth.growth_tables import FIT_HEAD, HEAD, QUANTITIES
from eval.report.svg import ONE, THREE, TWO

LOOKS = {"time": (ONE, "one"), "memory": (TWO, "two"), "compilation": (THREE, "three")}
UNITS = {"length": "tokens of a row", "layers": "layers", "width": "width", "devices": "devices"}
REMARK = (
    "Simulated devices share the cores of one machine: their plot shows what splitting a batch costs, not a speed-up. "
    "Memory is the sum over all devices, as XLA planned it."
)


def render(results: Results) -> str:
    """Return the page."""
    request, cells_by_axis = results.options, growth_tables.by_axis(results)
    lead = (
        f"A training step of {request['model']}, {request['batch']} rows, on {device(results)}: everything over its value at the "
        "left, both axes logarithmic. Behind each name the exponent b of a x^b and its standard error."
    )
    sections = {
        "Growth": [Plots([_plot(axis, cells) for axis, cells in cells_by_axis.items()])],
        "What was not timed": [growth_tables.notes(results)],
        "Exponents": [Table(FIT_HEAD, growth_tables.exponent_rows(results))],
        "Every number": [Table(HEAD, growth_tables.cell_rows(results)), REMARK if "devices" in cells_by_axis else ""],
    }
    return render_results(results, "How cost grows", lead, sections)


def _plot(axis: str, cells: Sequence[Mapping[str, Any]]) -> Figure:
    x = [cell["key"]["value"] for cell in cells]
    fits = growth_tables.fit_exponents(cells)

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

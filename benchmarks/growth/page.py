"""The results of `zoo bench growth` as a page: a plot for each axis, on logarithmic scales, with the fitted exponents."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.core.environment_html import device, environment
from benchmarks.core.result_files import Results
from benchmarks.growth import tables
from benchmarks.growth.tables import FIT_HEAD, HEAD, QUANTITIES, Exponent
from eval.report.html_page import page, section, table, text
from eval.report.svg import NARROW, ONE, THREE, TWO, key, svg

LOOKS = {"time": (ONE, "one"), "memory": (TWO, "two"), "compilation": (THREE, "three")}
UNITS = {"length": "tokens of a row", "layers": "layers", "width": "width", "devices": "devices"}


def render(results: Results) -> str:
    """Return the page."""
    request, cells_by_axis = results.options, tables.by_axis(results)
    lead = (
        f"A training step of {request['model']}, {request['batch']} rows, on {device(results)}: everything over its value at the "
        "left, both axes logarithmic. Behind each name the exponent b of a x^b and its standard error."
    )
    plots = "".join(_plot(axis, cells) for axis, cells in cells_by_axis.items())
    blocks = [
        f"<header><h1>How cost grows</h1><p class=lead>{text(lead)}</p></header>",
        section("Growth", f"<div class=plots>{plots}</div>"),
    ]
    if untimed := tables.notes(results):
        blocks.append(section("What was not timed", "<ul>" + "".join(f"<li>{text(note)}</li>" for note in untimed) + "</ul>"))
    blocks.append(section("Exponents", table(FIT_HEAD, tables.fits(results))))
    blocks.append(section("Every number", table(HEAD, tables.lines(results))))
    remark = (
        "Simulated devices share the cores of one machine: their plot shows what splitting a batch costs, not a speed-up. "
        "Memory is the sum over all devices, as XLA planned it."
    )
    blocks.append(f"<p class=note>{text(remark)}</p>" if "devices" in cells_by_axis else "")
    blocks.append(section("Environment", f"<div class=cards>{environment(results)}</div>"))
    blocks.append(f"<footer>{text('Made by zoo bench growth from nothing but its own cells.jsonl.')}</footer>")
    return page("How cost grows", lead, blocks)


def _plot(axis: str, cells: Sequence[Mapping[str, Any]]) -> str:
    x = [cell["key"]["value"] for cell in cells]
    fitted: dict[str, Exponent | None] = tables.exponents(cells)

    def draw(axes: Any) -> None:
        from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

        axes.set_xscale("log")
        axes.set_yscale("log")
        for name, column in QUANTITIES.items():
            y = [cell[column] for cell in cells]
            if not y[0]:
                continue
            axes.plot(x, [value / y[0] for value in y], "o", color=LOOKS[name][0], markersize=4)
            if fit := fitted[name]:
                axes.plot(x, [fit.factor * value**fit.value / y[0] for value in x], color=LOOKS[name][0])
        axes.xaxis.set_major_locator(FixedLocator(x))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.margins(x=0.04, y=0.08)
        axes.set_xlabel(UNITS[axis])

    keys = "".join(key(f"{LOOKS[name][1]} dots", f"{name} {text(fit)}") for name, fit in fitted.items() if fit)
    description = "; ".join(f"{name}: exponent {fit}" for name, fit in fitted.items() if fit)
    label = text(f"Growth with {axis}. {description}")
    return f"<figure><figcaption><b>{axis.capitalize()}</b>{keys}</figcaption>{svg(draw, NARROW, label)}</figure>"

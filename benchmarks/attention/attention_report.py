"""The report of `zoo bench attention`: as text a table of implementations, as a page also charts and every number."""

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scipy import stats

from benchmarks.attention import attention_charts
from benchmarks.attention.cost_model import FORMULAS, heads_of, problem_shape_text, time_of
from benchmarks.attention.problems import FEATURES
from benchmarks.attention.rounding_error_bounds import share_of_bound
from benchmarks.attention.sweep_rows import UNIT
from benchmarks.core import result_tables
from benchmarks.core.result_files import Results
from benchmarks.core.result_page import Form, Report, timed_sentence
from benchmarks.core.result_tables import format_number, merge_processes, seconds_text, timed_cells
from eval.pages.html_page import Block, Table

LEGEND = "time (* the device's by its profiler, else wall), wall time over xla's in the same rounds, share of the matrix rate"
SUPPORT = "Wall time over xla's in the same rounds, the geometric mean over all shapes: below 1 is faster. Hover for each."
SPACE = "\N{NO-BREAK SPACE}"

Cells = Sequence[Mapping[str, Any]]
Column = Callable[[Mapping[str, Any]], str]


def _key(name: str) -> Column:
    return lambda cell: cell["key"][name]


def _number(name: str, form: str, scale: float = 1.0) -> Column:
    return lambda cell: format_number(cell.get(name), form, scale)


def _span(name: str, show: Callable[[float], str]) -> Column:
    return lambda cell: "" if cell[name] is None else f"{show(cell[f'{name}_p20'])} to {show(cell[f'{name}_p80'])}"


COLUMNS: Mapping[str, Column] = {
    **{name.capitalize(): _key(name) for name in ("dtype", "direction", "feature")},
    "B x T": lambda cell: problem_shape_text(cell["key"]).replace(" ", SPACE),
    "N x H": lambda cell: heads_of(cell["key"]).replace(" ", SPACE),
    "Implementation": _key("implementation"),
    "Kernels": lambda cell: cell.get("kernels", "").replace(" ", SPACE).replace(f",{SPACE}", ", "),
    "Clock": lambda cell: cell.get("clock", ""),
    "Time": lambda cell: seconds_text(time_of(cell)),
    "Wall, 20 to 80 %": _span("seconds", seconds_text),
    "n": _number("n", "g"),
    "Over xla": _number("ratio", ".3f"),
    "20 to 80 %": _span("ratio", "{:.3f}".format),
    "Tokens/s": _number("tokens_per_s", ",.0f"),
    "GFLOP/s": _number("flops_per_s", ",.1f", 1e9),
    "Of matrix rate": _number("of_matrix_rate", ".1%"),
    "Of peak": _number("of_peak", ".1%"),
    "Least MB": _number("bytes", ",.1f", 1e6),
    "GB/s": _number("bytes_per_s", ",.1f", 1e9),
    "FLOPs/byte": _number("intensity", ",.1f"),
    "Of attainable": _number("of_attainable", ".1%"),
    "Memory, MB": _number("memory", ",.1f", 1e6),
    "Compile, s": _number("compile_seconds", ".2f"),
    "Error": _number("error", ".0e"),
    "Allowed": _number("allowed", ".0e"),
}
WORDS = 8
"""Number of columns with words; the others are numbers."""


def attention_report(results: Results, form: Form) -> Report:
    """Return the report; on a terminal without the definitions of its numbers."""
    cells = merge_processes(results.cells)
    # By dtype and direction, each of which has its own tables.
    parts: dict[str, list[Mapping[str, Any]]] = collections.defaultdict(list)
    for cell in cells:
        direction = "forward and backward" if cell["key"]["direction"] == "both" else cell["key"]["direction"]
        parts[f"{cell['key']['dtype']}, {direction}"].append(cell)
    features = {name: FEATURES[name].what for name in (cell["key"]["feature"] for cell in cells) if name in FEATURES}
    drawn = _drawings(results, cells, parts) if form == "page" else {title: _table(part) for title, part in parts.items()}
    sections: dict[str, Sequence[Block]] = {
        **drawn,
        "What was not timed": [result_tables.missing_cell_reasons(cells, lambda key: key["implementation"], counted=True)],
        "What the numbers are": [] if form == "terminal" else [{**FORMULAS, **features}],
    }
    return Report(timed_sentence(results, "cells"), sections, _tiles(results, cells))


def attention_cells_text(cells: Cells) -> str:
    """Return the cells of a row in one line, for the progress display."""
    measured = [(cell["key"]["implementation"], cell) for cell in cells if cell["state"] != "skipped"]
    return ", ".join(f"{name} {' '.join(attention_cell_text(cell).split())}" for name, cell in measured) or "nothing runs here"


def attention_cell_text(cell: Mapping[str, Any] | None) -> str:
    """Return the text of a cell in a table."""
    if cell is None:
        return ""
    if cell["state"] != "timed":
        return "-" if cell["state"] == "skipped" else cell["state"].upper()
    ratio = "     " if cell["ratio"] is None else f"{cell['ratio']:5.2f}"
    mark = "*" if cell.get("clock") == "device" else ""
    return f"{seconds_text(time_of(cell)) + mark:>8} {ratio} {cell['of_matrix_rate']:4.0%}"


def _table(cells: Cells) -> list[Block]:
    """Return the table of a dtype and direction, with a column for each implementation, and the largest errors."""
    # Rows of a feature are adjacent, in any order of measurement.
    features = list(dict.fromkeys(cell["key"]["feature"] for cell in cells))
    rows: dict[tuple[str, str, str], dict[str, Mapping[str, Any]]] = collections.defaultdict(dict)
    for cell in sorted(cells, key=lambda cell: features.index(cell["key"]["feature"])):
        key = cell["key"]
        rows[key["feature"], problem_shape_text(key), heads_of(key)][key["implementation"]] = cell
    # An implementation that was skipped everywhere has no column: the notes give the reason.
    names = list(dict.fromkeys(cell["key"]["implementation"] for cell in cells if cell["state"] != "skipped"))
    lines = [[*which, *(attention_cell_text(by_name.get(name)) for name in names)] for which, by_name in rows.items()]
    head = ("", "B x T", "N x H", *(f"`{name}`" for name in names))
    return [f"A cell: {LEGEND}.", Table(head, lines, words=3), _largest_errors(cells)]


def _largest_errors(cells: Cells) -> str:
    """Return a line with each implementation's error that uses most of its bound, and that bound; "" where none was checked."""
    largest: dict[str, tuple[float, float]] = {}
    for cell in cells:
        if "error" in cell and "allowed" in cell:
            name, pair = cell["key"]["implementation"], (cell["error"], cell["allowed"])
            largest[name] = max(largest.get(name, (0.0, 0.0)), pair, key=lambda error_and_bound: share_of_bound(*error_and_bound))
    pairs = ", ".join(f"{name} {error:.1e} of {allowed:.1e}" for name, (error, allowed) in largest.items())
    return f"Error against float64, as a share of the bound: {pairs}." if pairs else ""


def _drawings(results: Results, cells: Cells, parts: Mapping[str, Cells]) -> dict[str, Sequence[Block]]:
    """Return the heat maps and charts of the page, and the table of all numbers."""
    kinds, environment, timed = attention_charts.series_classes(cells), results.environment, timed_cells(cells)
    sections: dict[str, Sequence[Block]] = {}
    for title, part in parts.items():
        sections[f"Support: {title}"] = [SUPPORT, attention_charts.support_heat_map(part)]
    for title, part in parts.items():
        charts = [attention_charts.throughput_charts(part, kinds)] if timed_cells(part) else []
        sections[f"Throughput against length: {title}"] = charts
    for dtype, rate in environment["matrix_rate"].items():
        of_dtype = [cell for cell in timed if cell["key"]["dtype"] == dtype]
        charts = [attention_charts.roofline_charts(of_dtype, kinds, rate, environment["copy_rate"])] if of_dtype else []
        sections[f"Roofline: {dtype}"] = charts
    rows = [[column(cell) for column in COLUMNS.values()] for cell in timed]
    everything = Table(tuple(COLUMNS), rows, WORDS, summary=f"{len(rows)} cells, every number")
    return {**sections, "All that was timed": [everything if rows else "Nothing."]}


def _tiles(results: Results, cells: Cells) -> list[tuple[str, str]]:
    """Return the geometric mean of each implementation's ratios, and the machine's rates."""
    ratios: dict[str, list[float]] = collections.defaultdict(list)
    for cell in timed_cells(cells):
        if cell["ratio"] and cell["key"]["implementation"] != UNIT:
            ratios[cell["key"]["implementation"]].append(cell["ratio"])
    tiles = [(f"{stats.gmean(values):.2f}", f"of xla's time: {name}") for name, values in ratios.items()]
    for dtype, rate in results.environment["matrix_rate"].items():
        scale, named = attention_charts.rate_unit(rate)
        tiles.append((f"{rate / scale:,.0f}", f"{named}, matrix products in {dtype}"))
    return [*tiles, (f"{results.environment['copy_rate'] / 1e9:,.1f}", "GB/s, copies")]

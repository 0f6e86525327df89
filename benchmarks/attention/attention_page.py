"""The page of `zoo bench attention`: the supported features, throughput, rooflines, and all numbers."""

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scipy import stats

from benchmarks.attention import attention_charts
from benchmarks.attention.attention_tables import Part, heads_of, notes, shape_of
from benchmarks.attention.cost_model import FORMULAS, time_of
from benchmarks.attention.problems import FEATURES
from benchmarks.attention.sweep_rows import UNIT
from benchmarks.core.html_page import Block, Table
from benchmarks.core.result_files import Results
from benchmarks.core.result_page import render_results, timed_sentence
from benchmarks.core.result_tables import format_number, merge_processes, seconds_text, timed_cells

SPACE = "\N{NO-BREAK SPACE}"
SUPPORT = "Wall time over xla's in the same rounds, the geometric mean over all shapes: below 1 is faster. Hover for each."

Column = Callable[[Mapping[str, Any]], str]


def _key(name: str) -> Column:
    return lambda cell: cell["key"][name]


def _number(name: str, form: str, scale: float = 1.0) -> Column:
    return lambda cell: format_number(cell.get(name), form, scale)


def _span(name: str, show: Callable[[float], str]) -> Column:
    return lambda cell: "" if cell[name] is None else f"{show(cell[f'{name}_p20'])} to {show(cell[f'{name}_p80'])}"


COLUMNS: Mapping[str, Column] = {
    **{name.capitalize(): _key(name) for name in ("dtype", "direction", "feature")},
    "B x T": lambda cell: shape_of(cell["key"]).replace(" ", SPACE),
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


def render(results: Results) -> str:
    """Return the page."""
    cells, environment = merge_processes(results.cells), results.environment
    kinds, sections = attention_charts.series_classes(cells), dict[str, Sequence[Block]]()
    parts = {part.title: [cell for by_name in part.rows.values() for cell in by_name.values()] for part in Part.of(cells)}
    for title, selected in parts.items():
        sections[f"Support: {title}"] = [SUPPORT, attention_charts.support_heat_map(selected)]
    for title, selected in parts.items():
        sections[f"Throughput against length: {title}"] = (
            [attention_charts.throughput(selected, kinds)] if timed_cells(selected) else []
        )
    for dtype, rate in environment["matrix_rate"].items():
        selected = [cell for cell in timed_cells(cells) if cell["key"]["dtype"] == dtype]
        figures = [attention_charts.roofline(selected, kinds, rate, environment["copy_rate"])] if selected else []
        sections[f"Roofline: {dtype}"] = figures
    rows = [[column(cell) for column in COLUMNS.values()] for cell in timed_cells(cells)]
    everything = Table(tuple(COLUMNS), rows, WORDS, summary=f"{len(rows)} cells, every number")
    features = dict.fromkeys(cell["key"]["feature"] for cell in cells)
    sections |= {
        "What was not timed": [notes(cells)],
        "All that was timed": [everything if rows else "Nothing."],
        "What the numbers are": [{**FORMULAS, **{name: FEATURES[name].what for name in features if name in FEATURES}}],
    }
    return render_results(results, "Attention", timed_sentence(results, "cells"), sections, _tiles(results, cells))


def _tiles(results: Results, cells: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
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

"""The results of `zoo bench attention` as a self-contained HTML page, without network access and scripts."""

import collections
import math
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.attention import charts
from benchmarks.attention.cost_model import FORMULAS, time_of
from benchmarks.attention.problems import FEATURES
from benchmarks.attention.settings import UNIT
from benchmarks.attention.tables import Part, heads_of, notes, shape_of
from benchmarks.core.environment_html import device, environment
from benchmarks.core.result_files import Results
from benchmarks.core.tables import merged, seconds_text
from eval.report.html_page import page, section, table, text

COLUMNS = (
    *("Dtype", "Direction", "Feature", "B x T", "N x H", "Implementation", "Kernels"),
    *("Clock", "Time", "Wall, 20 to 80 %", "n", "Over xla", "20 to 80 %", "Tokens/s", "GFLOP/s", "Of matrix rate", "Of peak"),
    *("Least MB", "GB/s", "FLOPs/byte", "Of attainable", "Memory, MB", "Compile, s", "Error", "Allowed"),
)
WORDS = 8
"""Number of columns with words; the others are numbers."""
SPACE = "\N{NO-BREAK SPACE}"


def render(results: Results) -> str:
    """Return the page."""
    cells = merged(results.cells)
    kinds, lead = charts.looks(cells), _sentence(results, cells)
    parts = [f"<header><h1>Attention</h1><p class=lead>{text(lead)}</p>{_tiles(results, cells)}</header>"]
    explanation = (
        "Wall time over xla's in the same rounds, the geometric mean over all shapes: below 1 is faster. Hover for each."
    )
    for part in Part.of(cells):
        note = f"<p class=note>{text(explanation)}</p>"
        parts.append(section(f"Support: {text(part.title)}", note + charts.support(_of(part, cells))))
    for part in Part.of(cells):
        selected = _of(part, cells)
        if any(cell["state"] == "timed" for cell in selected):
            parts.append(section(f"Throughput against length: {text(part.title)}", charts.throughput(selected, kinds)))
    for dtype, rate in results.environment["matrix_rate"].items():
        selected = [cell for cell in cells if cell["key"]["dtype"] == dtype]
        if any(cell["state"] == "timed" for cell in selected):
            figure = charts.roofline(selected, kinds, rate, results.environment["copy_rate"])
            parts.append(section(f"Roofline: {text(dtype)}", figure))
    if reasons := notes(cells):
        parts.append(section("What was not timed", "<ul>" + "".join(f"<li>{text(note)}</li>" for note in reasons) + "</ul>"))
    parts.append(section("All that was timed", _all_timed(cells)))
    parts.append(section("What the numbers are", _formulas(cells)))
    parts.append(section("Environment", f"<div class=cards>{environment(results)}</div>"))
    parts.append(f"<footer>{text('Made by zoo bench attention from nothing but its own cells.jsonl.')}</footer>")
    return page("Attention", lead, parts)


def _of(part: Part, cells: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [cell for cell in cells if (cell["key"]["dtype"], cell["key"]["direction"]) == (part.dtype, part.direction)]


def _means(cells: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return implementation -> geometric mean of its ratios, for those that have any, without the unit."""
    logarithms: dict[str, list[float]] = collections.defaultdict(list)
    for cell in cells:
        if cell["state"] == "timed" and cell["ratio"] and cell["key"]["implementation"] != UNIT:
            logarithms[cell["key"]["implementation"]].append(math.log(cell["ratio"]))
    return {name: math.exp(sum(values) / len(values)) for name, values in logarithms.items()}


def _sentence(results: Results, cells: Sequence[Mapping[str, Any]]) -> str:
    timed = sum(cell["state"] == "timed" for cell in cells)
    bad = sum(cell["state"] in ("wrong", "failed") for cell in cells)
    summary = f"{timed} of {len(cells)} cells timed on {device(results)}"
    return f"{summary}; {bad} wrong or failed." if bad else f"{summary}; none is wrong."


def _tiles(results: Results, cells: Sequence[Mapping[str, Any]]) -> str:
    rates = results.environment["matrix_rate"].items()
    tiles = [(f"{mean:.2f}", f"of xla's time: {name}") for name, mean in _means(cells).items()]
    scaled = [(dtype, rate, *charts.unit(rate)) for dtype, rate in rates]
    tiles += [(f"{rate / scale:,.0f}", f"{named}, matrix products in {dtype}") for dtype, rate, scale, named in scaled]
    tiles.append((f"{results.environment['copy_rate'] / 1e9:,.1f}", "GB/s, copies"))
    items = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for value, name in tiles)
    return f"<dl class=tiles>{items}</dl>"


def _all_timed(cells: Sequence[Mapping[str, Any]]) -> str:
    timed = [cell for cell in cells if cell["state"] == "timed"]
    if not timed:
        return "<p class=note>Nothing.</p>"
    content = table(COLUMNS, [_line(cell) for cell in timed], words=WORDS)
    return f"<details><summary>{len(timed)} cells, every number</summary>{content}</details>"


def _line(cell: Mapping[str, Any]) -> list[Any]:
    key = cell["key"]

    def percent(name: str) -> str:
        return "" if cell.get(name) is None else f"{cell[name]:.1%}"

    def span(name: str, show: Any) -> str:
        return "" if cell[name] is None else f"{show(cell[f'{name}_p20'])} to {show(cell[f'{name}_p80'])}"

    def number(name: str, show: str, scale: float = 1.0) -> str:
        return "" if cell.get(name) is None else format(cell[name] / scale, show)

    return [
        *(
            key["dtype"],
            key["direction"],
            key["feature"],
            _unbroken(shape_of(key)),
            _unbroken(heads_of(key)),
            key["implementation"],
        ),
        _unbroken(cell.get("kernels", "")).replace(f",{SPACE}", ", "),
        *(cell.get("clock", ""), seconds_text(time_of(cell)), span("seconds", seconds_text), f"{cell['n']:g}"),
        *(number("ratio", ".3f"), span("ratio", "{:.3f}".format)),
        *(number("tokens_per_s", ",.0f"), number("flops_per_s", ",.1f", 1e9), percent("of_matrix_rate"), percent("of_peak")),
        *(
            number("bytes", ",.1f", 1e6),
            number("bytes_per_s", ",.1f", 1e9),
            number("intensity", ",.1f"),
            percent("of_attainable"),
        ),
        *(number("memory", ",.1f", 1e6), number("compile_seconds", ".2f")),
        number("error", ".0e"),
        number("allowed", ".0e"),
    ]


def _unbroken(words: str) -> str:
    """Return words that stay in one line."""
    return words.replace(" ", SPACE)


def _formulas(cells: Sequence[Mapping[str, Any]]) -> str:
    features = dict.fromkeys(cell["key"]["feature"] for cell in cells)
    lines = [*FORMULAS.items(), *((name, FEATURES[name].what) for name in features if name in FEATURES)]
    rows = "".join(f"<tr><th scope=row>{text(name)}</th><td>{text(meaning)}</td></tr>" for name, meaning in lines)
    return f"<table>{rows}</table>"

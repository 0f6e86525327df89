"""The results of `zoo bench growth` as text, and the exponents fitted to them."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.attention import tables
from benchmarks.core.result_files import Results
from benchmarks.core.tables import machine_line, seconds_text
from benchmarks.step.tables import gigabytes

AXES = ("length", "layers", "width", "devices")
QUANTITIES = {"time": "seconds", "memory": "memory", "compilation": "compile_seconds"}
"""Quantity that grows -> its column."""
HEAD = ("axis", "value", "time", "20-80 %", "memory", "compile")
FIT_HEAD = ("grows with", *QUANTITIES)


class Exponent(NamedTuple):
    """Exponent b of y = a x^b, and its standard error: None for two points."""

    value: float
    error: float | None
    factor: float
    """a."""

    def __str__(self) -> str:
        return f"{self.value:.2f}" + ("" if self.error is None else f" \N{PLUS-MINUS SIGN} {self.error:.2f}")


def exponent(x: Sequence[float | int], y: Sequence[float | int]) -> Exponent | None:
    """Fit y = a x^b by least squares to the logarithms; return None for fewer than two different x, or values not above 0."""
    if len(set(x)) < 2 or min(*x, *y) <= 0:
        return None
    log_x, log_y = np.log(np.asarray(x, float)), np.log(np.asarray(y, float))
    away = log_x - log_x.mean()
    value = float((away * log_y).sum() / (away**2).sum())
    start = float(log_y.mean() - value * log_x.mean())
    if len(x) < 3:
        return Exponent(value, None, float(np.exp(start)))
    left = log_y - start - value * log_x
    error = float(np.sqrt((left**2).sum() / (len(x) - 2) / (away**2).sum()))
    return Exponent(value, error, float(np.exp(start)))


def by_axis(results: Results) -> dict[str, list[dict[str, Any]]]:
    """Return the timed cells of each axis, ordered by value."""
    timed: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for cell in sorted(results.cells, key=lambda cell: (AXES.index(cell["key"]["axis"]), cell["key"]["value"])):
        if cell["state"] == "timed":
            timed[cell["key"]["axis"]].append(cell)
    return timed


def exponents(cells: Sequence[Mapping[str, Any]]) -> dict[str, Exponent | None]:
    """Return the exponent of each quantity along an axis."""
    x = [cell["key"]["value"] for cell in cells]
    return {name: exponent(x, [cell[column] for cell in cells]) for name, column in QUANTITIES.items()}


def lines(results: Results) -> list[list[str]]:
    """Return a row for each cell: see `HEAD`."""
    rows = []
    for axis, cells in by_axis(results).items():
        for cell in cells:
            low, high = (seconds_text(cell[f"seconds_{which}"]) for which in ("p20", "p80"))
            row = [axis, f"{cell['key']['value']:,}", seconds_text(cell["seconds"]), f"{low} .. {high}"]
            rows.append([*row, gigabytes(cell["memory"]), f"{cell['compile_seconds']:.1f} s"])
    return rows


def fits(results: Results) -> list[list[str]]:
    """Return a row for each axis: the exponents of all quantities."""
    return [[axis, *(str(fitted or "") for fitted in exponents(cells).values())] for axis, cells in by_axis(results).items()]


def notes(results: Results) -> list[str]:
    """Return the reasons of cells without a time."""
    return [
        f"{cell['key']['axis']} {cell['key']['value']}, {cell['state']}: {cell['reason']}"
        for cell in results.cells
        if cell["reason"]
    ]


def one_line(cells: Mapping[int, Mapping[str, Any]]) -> str:
    """Return the cells of an axis in one line, for the progress display."""
    texts = [f"{value} {seconds_text(cell['seconds'])}" for value, cell in cells.items() if cell["state"] == "timed"]
    failed = sum(cell["state"] != "timed" for cell in cells.values())
    return ", ".join([*texts, *([f"{failed} failed"] if failed else [])])


def show(results: Results) -> None:
    """Print the tables."""
    console = Console(highlight=False, markup=False, emoji=False)
    for head, rows in ((HEAD, lines(results)), (FIT_HEAD, fits(results))):
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
        for place, title in enumerate(head):
            table.add_column(title, justify="right" if place else "left", no_wrap=True)
        last = ""
        for first, *rest in rows:
            table.add_row("" if first == last else first, *rest)
            last = first
        console.print(table)
        console.print()
    console.print(Text("exponents b of a x^b, fitted to the logarithms, with their standard errors", "dim"))
    for note in notes(results):
        console.print(Text(note), soft_wrap=True)
    console.print(Text(machine_line(results), "dim"), soft_wrap=True)


def markdown(results: Results) -> str:
    """Return table.md."""
    blocks = ["# Growth", "Made by `zoo bench growth`.", machine_line(results)]
    for head, rows in ((HEAD, lines(results)), (FIT_HEAD, fits(results))):
        table = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
        blocks.append("\n".join(f"| {' | '.join(row)} |" for row in table))
    blocks.append("The last table has the exponents b of a x^b, fitted to the logarithms, with their standard errors.")
    if untimed := notes(results):
        blocks.append("\n".join(f"- {note}" for note in untimed))
    return "\n\n".join(blocks) + "\n"


csv = tables.csv

"""The results of `zoo bench growth` as tables of text, and the exponents fitted to them."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from scipy import stats

from benchmarks.core.result_files import Results
from benchmarks.core.result_tables import Block, Table, gigabytes, machine_line, percentiles_text, seconds_text, timed_cells
from benchmarks.core.result_tables import notes as notes_of

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


def fit_exponent(x: Sequence[float | int], y: Sequence[float | int]) -> Exponent | None:
    """Fit y = a x^b by least squares to the logarithms; return None for fewer than two different x, or values not above 0."""
    if len(set(x)) < 2 or min(*x, *y) <= 0:
        return None
    fit = cast(Any, stats.linregress(np.log(x), np.log(y)))
    return Exponent(float(fit.slope), float(fit.stderr) if len(x) > 2 else None, float(np.exp(fit.intercept)))


def by_axis(results: Results) -> dict[str, list[dict[str, Any]]]:
    """Return the timed cells of each axis, ordered by value."""
    groups: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for cell in sorted(timed_cells(results.cells), key=lambda cell: (AXES.index(cell["key"]["axis"]), cell["key"]["value"])):
        groups[cell["key"]["axis"]].append(dict(cell))
    return groups


def fit_exponents(cells: Sequence[Mapping[str, Any]]) -> dict[str, Exponent | None]:
    """Return the exponent of each quantity along an axis."""
    x = [cell["key"]["value"] for cell in cells]
    return {name: fit_exponent(x, [cell[column] for cell in cells]) for name, column in QUANTITIES.items()}


def cell_rows(results: Results) -> list[list[str]]:
    """Return a row for each cell: see `HEAD`."""
    rows = []
    for axis, cells in by_axis(results).items():
        for cell in cells:
            row = [axis, f"{cell['key']['value']:,}", seconds_text(cell["seconds"]), percentiles_text(cell)]
            rows.append([*row, gigabytes(cell["memory"]), f"{cell['compile_seconds']:.1f} s"])
    return rows


def exponent_rows(results: Results) -> list[list[str]]:
    """Return a row for each axis: the exponents of all quantities."""
    return [[axis, *(str(fitted or "") for fitted in fit_exponents(cells).values())] for axis, cells in by_axis(results).items()]


def notes(results: Results) -> list[str]:
    """Return the reasons of cells without a time."""
    return notes_of(results.cells, lambda key: f"{key['axis']} {key['value']}")


def one_line(cells: Sequence[Mapping[str, Any]]) -> str:
    """Return the cells of an axis in one line, for the progress display."""
    texts = [f"{cell['key']['value']} {seconds_text(cell['seconds'])}" for cell in timed_cells(cells)]
    failed = len(cells) - len(texts)
    return ", ".join([*texts, *([f"{failed} failed"] if failed else [])])


def report_blocks(results: Results, *, terminal: bool) -> list[Block]:
    """Return the report."""
    return [
        machine_line(results),
        Table(HEAD, cell_rows(results)),
        Table(FIT_HEAD, exponent_rows(results)),
        "The last table has the exponents b of a x^b, fitted to the logarithms, with their standard errors.",
        notes(results),
    ]

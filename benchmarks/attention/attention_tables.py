"""The results of `zoo bench attention` as tables of text."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.attention.cost_model import FORMULAS, time_of
from benchmarks.attention.rounding_error_bounds import share_of_bound
from benchmarks.core.result_files import Results
from benchmarks.core.result_tables import Block, Heading, Table, machine_line, merge_processes, seconds_text
from benchmarks.core.result_tables import notes as notes_of

LEGEND = "time (* the device's by its profiler, else wall), wall time over xla's in the same rounds, share of the matrix rate"


def shape_of(key: Mapping[str, Any]) -> str:
    """Return examples and lengths: "16 x 128", or "4 x 128/512" for 128 queries over 512 keys."""
    lengths = f"{key['queries']}" if key["queries"] == key["keys"] else f"{key['queries']}/{key['keys']}"
    return f"{key['batch']} x {lengths}"


def heads_of(key: Mapping[str, Any]) -> str:
    """Return heads and their size: "12 x 64", or "12/3 x 64" for 3 key/value heads."""
    heads = f"{key['heads']}" if key["heads"] == key["groups"] else f"{key['heads']}/{key['groups']}"
    return f"{heads} x {key['head']}"


def cell_text(cell: Mapping[str, Any] | None) -> str:
    """Return the text of a cell in a table."""
    if cell is None:
        return ""
    if cell["state"] != "timed":
        return "-" if cell["state"] == "skipped" else cell["state"].upper()
    ratio = "     " if cell["ratio"] is None else f"{cell['ratio']:5.2f}"
    mark = "*" if cell.get("clock") == "device" else ""
    return f"{seconds_text(time_of(cell)) + mark:>8} {ratio} {cell['of_matrix_rate']:4.0%}"


def one_line(cells: Sequence[Mapping[str, Any]]) -> str:
    """Return the cells of a row in one line, for the progress display."""
    measured = [(cell["key"]["implementation"], cell) for cell in cells if cell["state"] != "skipped"]
    return ", ".join(f"{name} {' '.join(cell_text(cell).split())}" for name, cell in measured) or "nothing runs here"


class Part:
    """Cells of one table: those of one dtype and direction."""

    def __init__(self, dtype: str, direction: str, cells: Sequence[Mapping[str, Any]]) -> None:
        self.dtype, self.direction = dtype, direction
        self.title = f"{dtype}, {'forward and backward' if direction == 'both' else direction}"
        self.errors = largest_errors(cells)
        self.rows: dict[tuple[str, str, str], dict[str, Mapping[str, Any]]] = collections.defaultdict(dict)
        for cell in cells:
            key = cell["key"]
            self.rows[key["feature"], shape_of(key), heads_of(key)][key["implementation"]] = cell
        # An implementation that was skipped everywhere has no column: the notes give the reason.
        self.names = list(dict.fromkeys(cell["key"]["implementation"] for cell in cells if cell["state"] != "skipped"))

    @classmethod
    def of(cls, cells: Sequence[Mapping[str, Any]]) -> "list[Part]":
        groups: dict[tuple[str, str], list[Mapping[str, Any]]] = collections.defaultdict(list)
        for cell in cells:
            groups[cell["key"]["dtype"], cell["key"]["direction"]].append(cell)
        return [cls(*which, group) for which, group in groups.items()]

    def lines(self) -> list[list[str]]:
        """Return the rows: feature, B x T, N x H, then the cells; rows of a feature are adjacent, in any order of measurement."""
        features = list(dict.fromkeys(feature for feature, *_ in self.rows))
        rows = sorted(self.rows.items(), key=lambda item: features.index(item[0][0]))
        return [[*which, *(cell_text(by_name.get(name)) for name in self.names)] for which, by_name in rows]


def notes(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the reasons of cells without complete times, each reason once, with its implementation and number of cells."""
    return notes_of(cells, lambda key: key["implementation"], counted=True)


def largest_errors(cells: Sequence[Mapping[str, Any]]) -> str:
    """Return a line with each implementation's error that uses most of its bound, and that bound; "" where none was checked."""
    largest: dict[str, tuple[float, float]] = {}
    for cell in cells:
        if "error" in cell and "allowed" in cell:
            name, pair = cell["key"]["implementation"], (cell["error"], cell["allowed"])
            largest[name] = max(largest.get(name, (0.0, 0.0)), pair, key=lambda error_and_bound: share_of_bound(*error_and_bound))
    pairs = ", ".join(f"{name} {error:.1e} of {allowed:.1e}" for name, (error, allowed) in largest.items())
    return f"Error against float64, as a share of the bound: {pairs}." if pairs else ""


def report_blocks(results: Results, *, terminal: bool) -> list[Block]:
    """Return the report; on a terminal without the definitions of its numbers."""
    cells = merge_processes(results.cells)
    content: list[Block] = [machine_line(results)]
    for part in Part.of(cells):
        head = ("", "B x T", "N x H", *(f"`{name}`" for name in part.names))
        content += [Heading(part.title[:1].upper() + part.title[1:]), f"A cell: {LEGEND}.", Table(head, part.lines(), words=3)]
        content.append(part.errors)
    return [*content, notes(cells), [] if terminal else [f"{name}: {formula}." for name, formula in FORMULAS.items()]]

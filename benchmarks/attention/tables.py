"""The results of `zoo bench attention` as text: a table on the terminal, the same as Markdown, and every number as CSV."""

import collections
import csv as writer
import io
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.attention.cost_model import FORMULAS, time_of
from benchmarks.attention.rounding import share
from benchmarks.core.result_files import Results
from benchmarks.core.tables import SEVERITY, machine_line, merged, seconds_text

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


HEAD = ("feature", "B x T", "N x H")


class Part:
    """Cells of one table: those of one dtype and direction."""

    def __init__(self, dtype: str, direction: str, cells: Sequence[Mapping[str, Any]]) -> None:
        self.dtype, self.direction = dtype, direction
        self.title = f"{dtype}, {'forward and backward' if direction == 'both' else direction}"
        self.errors = errors(cells)
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
    counted = collections.Counter(
        (cell["state"], cell["key"]["implementation"], cell["reason"]) for cell in cells if cell["reason"]
    )
    lines = []
    for (state, name, reason), count in sorted(counted.items(), key=lambda item: SEVERITY.index(item[0][0])):
        lines.append(f"{name}, {state}: {reason} ({count} {'cell' if count == 1 else 'cells'})")
    return lines


def errors(cells: Sequence[Mapping[str, Any]]) -> str:
    """Return a line with each implementation's error that uses most of its bound, and that bound; "" where none was checked."""
    largest: dict[str, tuple[float, float]] = {}
    for cell in cells:
        if "error" in cell and "allowed" in cell:
            name, pair = cell["key"]["implementation"], (cell["error"], cell["allowed"])
            largest[name] = max(largest.get(name, (0.0, 0.0)), pair, key=lambda error_and_bound: share(*error_and_bound))
    pairs = ", ".join(f"{name} {error:.1e} of {allowed:.1e}" for name, (error, allowed) in largest.items())
    return f"Error against float64, of what is allowed: {pairs}." if pairs else ""


CELL = 19
"""Width of a cell on the terminal, in columns."""


def show(results: Results) -> None:
    """Print the table; in several blocks if it is wider than the terminal."""
    console, cells = Console(highlight=False, markup=False, emoji=False), merged(results.cells)
    for part in Part.of(cells):
        console.print(Text(f"\n{part.title}", "bold"))
        lines = part.lines()
        labels = sum(max(map(len, column)) + 2 for column in zip(HEAD, *(line[:3] for line in lines), strict=True))
        several = max(1, (console.width - labels) // (CELL + 2))
        for first in range(0, max(1, len(part.names)), several):
            console.print(_block(part.names[first : first + several], lines, first))
        if part.errors:
            console.print(Text(part.errors, "dim"), soft_wrap=True)
    console.print(Text(f"\n{LEGEND}", "dim"))
    for note in notes(cells):
        console.print(Text(note, "dim" if ", skipped:" in note else ""), soft_wrap=True)
    console.print(Text(machine_line(results), "dim"), soft_wrap=True)


def _block(names: Sequence[str], lines: Sequence[Sequence[str]], first: int) -> Table:
    """Return the columns of some implementations, beginning with number `first`, for all rows."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for title in HEAD:
        table.add_column(title, no_wrap=True)
    for name in names:
        table.add_column(Text(name), no_wrap=True, justify="right", min_width=CELL)
    last = ""
    for feature, *rest in lines:
        texts = [*rest[:2], *rest[2 + first : 2 + first + len(names)]]
        styled = [Text(text, "bold red" if text in ("WRONG", "FAILED") else "") for text in texts]
        table.add_row(Text("" if feature == last else feature), *styled)
        last = feature
    return table


def markdown(results: Results) -> str:
    """Return table.md."""
    cells = merged(results.cells)
    blocks = ["# Attention", "Made by `zoo bench attention`.", machine_line(results)]
    for part in Part.of(cells):
        head = ["", "B x T", "N x H", *(f"`{name}`" for name in part.names)]
        rule = ["---", "---", "---", *["---:"] * len(part.names)]
        rows = [head, rule, *([" ".join(cell.split()) for cell in line] for line in part.lines())]
        table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        blocks += [f"## {part.title[:1].upper()}{part.title[1:]}", f"A cell: {LEGEND}.", table]
        blocks += [part.errors] if part.errors else []
    if reasons := notes(cells):
        blocks.append("\n".join(f"- {note}" for note in reasons))
    blocks.append("\n".join(f"- {name}: {formula}." for name, formula in FORMULAS.items()))
    return "\n\n".join(blocks) + "\n"


def csv(results: Results) -> str:
    """Return table.csv: a line for each cell of each process, with every column."""
    lines = [{**cell["key"], **{name: value for name, value in cell.items() if name != "key"}} for cell in results.cells]
    columns = list(dict.fromkeys(name for line in lines for name in line))
    written = io.StringIO()
    table = writer.DictWriter(written, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(lines)
    return written.getvalue()

"""Tables of all benchmarks: merged cells and their texts, and one report as a terminal's output, Markdown or CSV.

A report is a list of blocks: headings, paragraphs, tables, and lists of notes.
"""

import collections
import csv as csv_format
import io
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from benchmarks.core.result_files import Results, cell_identity
from eval.pages.html_page import Table
from eval.pages.terminal_tables import Column, plain_console, terminal_table
from zoo.errors import printable

SEVERITY = ("wrong", "failed", "timed", "skipped")
"""Order of states: the state shown for several processes is the first of these that occurred in one of them."""

Cell = Mapping[str, Any]
Cells = Sequence[Cell]


class Heading(str):
    """A block that begins a part of a report."""


Block = Heading | str | Table | list[str]
"""A list of strings is a list of notes, a string a paragraph."""


# --- cells ----------------------------------------------------------------------------------------------------------------------


def by_key(cells: Cells) -> dict[str, list[Cell]]:
    """Return the cells of each key, one for each process."""
    groups: dict[str, list[Cell]] = collections.defaultdict(list)
    for cell in cells:
        groups[cell_identity(cell["key"])].append(cell)
    return groups


def worst_state(cells: Cells) -> str:
    """Return the most severe state of several cells."""
    return min((cell["state"] for cell in cells), key=SEVERITY.index)


def merge_processes(cells: Cells) -> list[dict[str, Any]]:
    """Return one cell for each key: the median of each number over its processes, and in "processes" how many there are."""
    rows = []
    for group in by_key(cells).values():
        state = worst_state(group)
        same = [cell for cell in group if cell["state"] == state]
        one = {**same[0], "processes": len(same)}
        for name, value in same[0].items():
            numbers = [number for cell in same if isinstance(number := cell.get(name), int | float)]
            if isinstance(value, int | float) and len(numbers) == len(same):
                one[name] = statistics.median(numbers)
        rows.append(one)
    return rows


def timed_cells(cells: Cells) -> list[Cell]:
    """Return the cells that have a time."""
    return [cell for cell in cells if cell["state"] == "timed"]


def missing_cell_reasons(cells: Cells, name: Callable[[Mapping[str, Any]], str], *, counted: bool = False) -> list[str]:
    """Return the reasons of cells that have no time or lack columns, the most severe first, each reason once.

    Args:
        name: returns the part of a key that names its cell in a note.
        counted: whether a note ends in its number of cells.
    """
    counts = collections.Counter((cell["state"], name(cell["key"]), cell["reason"]) for cell in cells if cell["reason"])
    lines = []
    for (state, label, reason), count in sorted(counts.items(), key=lambda item: SEVERITY.index(item[0][0])):
        lines.append(f"{label}, {state}: {reason}" + (f" ({count} {'cell' if count == 1 else 'cells'})" if counted else ""))
    return lines


# --- texts ----------------------------------------------------------------------------------------------------------------------


def seconds_text(seconds: float) -> str:
    """Return a time with three digits."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= scale:
            value = seconds / scale
            return f"{value:.{max(0, 2 - len(str(int(value))) + 1)}f} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def percentiles_text(cell: Cell) -> str:
    """Return the 20th and 80th percentile of a time."""
    return " .. ".join(seconds_text(cell[f"seconds_{which}"]) for which in ("p20", "p80"))


def format_bytes(size: float | int | None) -> str:
    """Return a number of bytes in GB or MB; "" for None."""
    if size is None:
        return ""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def format_number(value: float | int | None, form: str, scale: float = 1.0) -> str:
    """Return a number over `scale` in a format, such as ".1f"; "" for None."""
    return "" if value is None else format(value / scale, form)


def machine_line(results: Results) -> str:
    """Return a line that describes the machine and versions of the results."""
    processes = len({cell["process"] for cell in results.cells})
    return f"{environment_line(results.environment)}; {processes} {'process' if processes == 1 else 'processes'}"


def environment_line(env: Mapping[str, Any]) -> str:
    """Return a line that describes a machine, its load and rates, and versions."""
    versions = env["versions"]
    where = f"{env['cpu']}, {env['cores']} cores" if env["backend"] == "cpu" else f"{env['devices']} x {env['device']}"
    rates = ", ".join(f"{dtype} {rate / 1e9:.0f} GFLOP/s" for dtype, rate in env["matrix_rate"].items())
    return (
        f"{where}; JAX {versions['jax']}, Python {versions['python']}; XLA_FLAGS={versions['XLA_FLAGS']}; {env['date']}, "
        f"load {env['load']}; matrix products {rates}; copies {env['copy_rate'] / 1e9:.1f} GB/s"
    )


# --- reports --------------------------------------------------------------------------------------------------------------------


def print_blocks(blocks: Sequence[Block]) -> None:
    """Print the blocks of a report; a table that is wider than the terminal is printed as several."""
    console = plain_console()
    if not console.is_terminal:
        console.width = max(console.width, 120)
    for block in filter(None, blocks):
        if isinstance(block, Heading):
            console.print(Text(printable(block), "bold"))
        elif isinstance(block, Table):
            _show_table(console, block)
        else:
            for line in [block] if isinstance(block, str) else block:
                style = "dim" if isinstance(block, str) or ", skipped:" in line else ""
                console.print(Text(printable(line), style), soft_wrap=not console.is_terminal)


BAD = ("WRONG", "FAILED")


def _show_table(console: Console, table: Table) -> None:
    """Print a table; a first word that repeats the one above it is left out."""
    firsts = [row[0] for row in table.rows]
    above = ["", *firsts[:-1]]
    rows = [["" if first == last else first, *row[1:]] for first, last, row in zip(firsts, above, table.rows, strict=True)]
    for places in _fitting_columns(table, console.width):
        columns = []
        for place in places:
            cells = [Text(printable(row[place]), "bold red" if row[place] in BAD else "") for row in rows]
            words = place < table.words
            columns.append(Column(printable(table.head[place].strip("`")), cells, "left" if words else "right", fold=words))
        console.print(terminal_table(columns, head=any(table.head)), "")


def _fitting_columns(table: Table, width: int) -> list[list[int]]:
    """Return the columns of one or more tables of at most this width; each table has all columns of words."""
    widths = [max(map(len, column)) + 2 for column in zip(table.head, *table.rows, strict=True)]
    groups: list[list[int]] = [[]]
    for place in range(table.words, len(widths)):
        used_width = sum(widths[: table.words]) + sum(widths[other] for other in groups[-1])
        if groups[-1] and used_width + widths[place] - 2 > width:
            groups.append([])
        groups[-1].append(place)
    return [[*range(table.words), *group] for group in groups]


def table_csv(results: Results) -> str:
    """Return table.csv: a line for each cell of each process, with every column that has a single value."""
    lines = [
        {**cell["key"], **{name: value for name, value in cell.items() if not isinstance(value, dict)}} for cell in results.cells
    ]
    written = io.StringIO()
    table = csv_format.DictWriter(written, list(dict.fromkeys(name for line in lines for name in line)), lineterminator="\n")
    table.writeheader()
    table.writerows(lines)
    return written.getvalue()
